//! The endpoint registry and its handlers; folders mirror the URL tree.
