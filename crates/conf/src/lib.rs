//! The replicated configuration tree: Raft over redb, transactions, watches, history.
