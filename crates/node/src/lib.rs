//! What both binaries share: configuration, command line, the hub of rules and outboxes, control socket.
