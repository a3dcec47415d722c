//! `port`: nothing is captured; programs dial the agent's own listeners.

use std::{io, net::SocketAddr};

use tokio::net::TcpStream;

use super::{Capture, CaptureTable, Origin};

/// Nothing in the kernel.
pub struct Port;

impl Capture for Port {
    fn name(&self) -> &'static str {
        "port"
    }

    fn needs_listener(&self) -> bool {
        false
    }

    fn apply(&self, _: &CaptureTable) -> anyhow::Result<()> {
        Ok(())
    }

    fn origin(&self, conn: &TcpStream) -> io::Result<Origin> {
        let destination: SocketAddr = conn.local_addr()?;
        Ok(Origin::of(destination))
    }
}
