//! Promises to users, checked with real programs: one file for each promise, one binary for all.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a panic is its way to fail")]

mod bench;
mod capture;
mod center_capacity;
mod center_cli;
mod center_commands;
mod center_figures;
mod center_registry;
mod center_scale;
mod cli;
mod commands;
mod console;
mod demo;
mod dns;
mod docs;
mod drain;
mod enroll;
mod etcd;
mod explain;
mod filters;
mod graphite;
mod ha;
mod http;
mod http_mesh;
mod inbound;
mod iptables;
mod iptables_follow;
mod iptables_in;
mod kernelway;
mod limits;
mod loss;
mod many;
mod motan2;
mod motan2_hops;
mod motan_dropin;
mod names;
mod redirect;
mod redirect_loss;
mod registering;
mod reload;
mod semantics;
mod snapshots;
mod tcp;
mod unix;
mod zookeeper;
