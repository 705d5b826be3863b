//! TLS, peer connections, the join handshake, forwarding.
