//! `sockmesh`: flags and verbs.
fn main() {}
