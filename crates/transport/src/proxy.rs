//! The PROXY protocol, versions 1 and 2: where a connection that a load balancer passes on comes from.
