//! The VM driver: command line, QMP, devices, migration.
