//! TLS over rustls: the layer of a connection, and what certificates, keys and revocation lists make of it.
