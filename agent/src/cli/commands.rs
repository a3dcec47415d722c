//! Verbs that change something, and `version`.

use std::process::ExitCode;

use super::{Output, Target, block_on, print};
use crate::admin::view;

/// Arguments of `reload` and `drain`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Arguments of `version`.
#[derive(Clone, Debug, clap::Args)]
pub struct VersionArgs {
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Runs `sockmesh reload`: prints what the agent did; an error says why the old configuration stays.
pub fn reload(args: &Args) -> anyhow::Result<ExitCode> {
    command(args, "/reload", "reloaded: ")
}

/// Runs `sockmesh drain`: returns when the agent has begun to stop.
pub fn drain(args: &Args) -> anyhow::Result<ExitCode> {
    command(args, "/drain", "")
}

fn command(args: &Args, path: &str, before: &str) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let done = client.post(path).await?;
        print(&format!("{before}{done}\n"))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs `sockmesh version`: the program's own version, and that of the agent if one answers.
pub fn version(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let agent = client.get::<view::Version>("/version").await.ok().map(|(_, v)| v.version);
        let own = env!("CARGO_PKG_VERSION");
        let text = match (args.output, agent) {
            (Output::Json, agent) => format!("{:#}\n", serde_json::json!({ "version": own, "agent": agent })),
            (Output::Table, Some(agent)) => format!("sockmesh {own}\nagent at {}: {agent}\n", client.at),
            (Output::Table, None) => format!("sockmesh {own}\nagent at {}: none answers\n", client.at),
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}
