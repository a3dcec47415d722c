//! The kernel half on this kernel: real programs in control groups made by the tests, listeners in the test.
//!
//! A test that lacks rights or the eBPF object prints `SKIPPED: <test>: <reason>`, and fails under
//! `REQUIRE_ALL`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are not inside #[test] functions; skips are printed"
)]

mod balance;
mod bed;
mod connects;
mod enroll;
mod failures;
mod join;
mod lifecycle;
mod redirect;
mod semantics;
mod sockopt;
