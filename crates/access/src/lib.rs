//! Realms, users, tokens, roles, ACLs, tickets.
