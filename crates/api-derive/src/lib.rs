//! `derive(Params)`: one struct gives form, JSON and query parsing and the schema.
