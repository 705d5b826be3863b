//! Holds the tree against the rules of the house that a program can check. All of it lies in `tests/`.
