//! Who this agent is for the servers, and who may do what with the nodes that it makes.

use std::fmt;

use bytes::Bytes;
use serde::Deserialize;

use crate::fetch::tls::Tls;

/// How servers are come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Access {
    /// Over TLS; plain when absent.
    pub tls: Option<Tls>,
    /// An account, shown on each connection.
    pub login: Option<Login>,
    /// Who may do what with nodes that are made.
    pub acl: Acl,
}

/// An account of ZooKeeper's scheme `digest`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login(Bytes);

impl Login {
    pub fn new(name: &str, password: &str) -> Self {
        Self(format!("{name}:{password}").into())
    }

    /// `NAME:PASSWORD`.
    pub fn text(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(...)")
    }
}

/// Access list of nodes that are made, folders as well: who may delete a node is written at its folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Acl {
    /// All may do everything, as in everything of Motan's.
    #[default]
    Open,
    /// All may read; only the account may do anything else.
    OwnerWrites,
    /// Only the account may do anything.
    OwnerOnly,
}

/// What may be done: read, write, create, delete, administer.
const ALL: i32 = 31;
const READ: i32 = 1;

impl Acl {
    /// Permissions, scheme and name of each entry. `auth` is whoever makes the node.
    pub fn entries(self) -> &'static [(i32, &'static str, &'static str)] {
        match self {
            Self::Open => &[(ALL, "world", "anyone")],
            Self::OwnerWrites => &[(ALL, "auth", ""), (READ, "world", "anyone")],
            Self::OwnerOnly => &[(ALL, "auth", "")],
        }
    }
}
