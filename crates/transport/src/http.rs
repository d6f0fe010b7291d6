//! HTTP/1.1, as far as a WebSocket and a proxy need it: upgrade (RFC 6455, 4) and CONNECT (RFC 9110, 9.3.6).
