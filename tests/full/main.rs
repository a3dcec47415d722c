//! Promises to users, checked with programs that are built first: `cargo xtask test --full`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a panic is its way to fail")]

mod center_commands;
mod consul;
mod graphite_alerts;
mod kind;
mod kubernetes;
mod mesh;
mod motan_go;
mod motan_java;
mod nacos;
mod otelcol;
mod traced;
mod zipkin;
