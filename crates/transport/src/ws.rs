//! WebSocket frames (RFC 6455), both roles, streamed: no message is ever put together.
