//! `sockmesh registrations`.

use std::process::ExitCode;

use super::{
    Output, Target, block_on, print, screen,
    table::{Align, Cell, Style, Table},
    units,
};
use crate::admin::view;

/// Arguments of `registrations`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Say whether callers from elsewhere may come: all registrations follow
    #[arg(long, value_name = "WORD")]
    pub set: Option<Word>,
    /// How to print the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// Which agent
    #[command(flatten)]
    pub target: Target,
}

/// Whether callers from elsewhere may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Word {
    /// They may.
    Available,
    /// They may not.
    Unavailable,
}

/// Runs `sockmesh registrations`: lists, or turns the word.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let client = args.target.client()?;
    block_on(async {
        let text = match args.set {
            Some(Word::Available) => client.post("/availability?to=available").await? + "\n",
            Some(Word::Unavailable) => client.post("/availability?to=unavailable").await? + "\n",
            None => {
                let (_, page) = client.get::<view::Registrations>("/registrations").await?;
                match args.output {
                    Output::Json => serde_json::to_string_pretty(&page)? + "\n",
                    Output::Table => table(&page).lines(screen::color(), None).join("\n") + "\n",
                }
            }
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn table(page: &view::Registrations) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("GROUP", Align::Left),
        ("PROTOCOL", Align::Left),
        ("REGISTRY", Align::Left),
        ("ADDRESS", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
    ]);
    let or_none = |text: &str| if text.is_empty() { units::NONE.to_owned() } else { text.to_owned() };
    for row in &page.registrations {
        let style = match row.state.as_str() {
            "available" => Style::Good,
            "pending" => Style::Bad,
            _ => Style::Faint,
        };
        table.row(vec![
            Cell::styled(&row.service, Style::Bold),
            or_none(&row.group).into(),
            row.protocol.clone().into(),
            row.registry.clone().into(),
            or_none(&row.address).into(),
            row.weight.to_string().into(),
            Cell::styled(&row.state, style),
        ]);
    }
    if page.registrations.is_empty() {
        table.note("nothing is registered", Style::Faint);
    }
    if !page.available {
        table.note("! unavailable: callers from elsewhere may not come", Style::Bad);
    }
    for row in &page.registrations {
        if let Some(why) = &row.why {
            table.note(format!("! {} in {}: {why}", row.service, row.registry), Style::Bad);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list() {
        let page = view::Registrations {
            available: false,
            registrations: vec![view::Registration {
                service: "web".into(),
                group: String::new(),
                version: String::new(),
                protocol: "http".into(),
                registry: "zk".into(),
                address: "10.0.0.5:80".into(),
                weight: 10,
                state: "pending".into(),
                why: Some("no answer".into()),
            }],
        };
        let lines = table(&page).lines(screen::color(), None).join("\n");
        assert!(lines.contains("10.0.0.5:80") && lines.contains("! web in zk: no answer"), "{lines}");
        assert!(lines.contains("may not come"), "{lines}");
    }
}
