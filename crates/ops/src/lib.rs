//! The use cases: authorize, decide, act.
