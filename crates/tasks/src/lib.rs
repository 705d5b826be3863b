//! Tasks: UPIDs, persisted steps, logs, adoption after a restart.
