//! `sockmesh run`: its flags, those of motan-go's agent among them, spelled with one dash or two.

use std::{
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::config::motan::{Flags, Surroundings, go_bool, log_level};

/// Arguments of `sockmesh run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration, or a motan-go file or folder [default: motan-go's ./motan.yaml, or ./ with --pool]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log what the kernel programs say, from this level on: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub kernel_log: Option<tracing::Level>,
    /// Come back with the status, services and subscriptions that management calls brought before
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub recover: Option<bool>,
    #[command(flatten)]
    pub(super) motan: Motan,
}

/// Flags of motan-go's agent, with one dash or two, as `-port 9981`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Flags of motan-go's agent, with one dash or two")]
pub(super) struct Motan {
    /// Port where programs call [default: the file's, or 9981]
    #[arg(long)]
    port: Option<u16>,
    /// Port for services that are registered later [default: the file's, or 9982]
    #[arg(long)]
    eport: Option<u16>,
    /// Port of the HTTP forward proxy [default: the file's, or 9983]
    #[arg(long)]
    hport: Option<u16>,
    /// Port of management and the admin API [default: $mport, the file's, or 8002]
    #[arg(long)]
    mport: Option<u16>,
    /// Address of that port [default: the file's, or 127.0.0.1]
    #[arg(long)]
    mhost: Option<IpAddr>,
    /// File for the number of the process [default: the file's, or ./agent.pid]
    #[arg(long)]
    pidfile: Option<PathBuf>,
    /// Address told to callers of registered services
    #[arg(long = "localIP", value_name = "IP")]
    local_ip: Option<IpAddr>,
    /// Replaces ${idc} in groups
    #[arg(long)]
    idc: Option<String>,
    /// Pool, as APP-IDC-LEVEL, when the configuration is a folder
    #[arg(long)]
    pool: Option<String>,
    /// Application, when the configuration is a folder
    #[arg(long)]
    application: Option<String>,
    /// Folder of the access log [default: the file's, or .]
    #[arg(long = "log_dir", value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// No effect: the access log is always written in the background
    #[arg(long = "log_async", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    log_async: Option<bool>,
    /// Lines of the access log that wait for the disk
    #[arg(long = "log_buffer_size", value_name = "LINES")]
    log_buffer_size: Option<u32>,
    /// Level of the log: trace, debug, info, warn, error, dpanic, panic or fatal
    #[arg(long = "log_level", value_name = "LEVEL", value_parser = level)]
    log_level: Option<String>,
    /// The access log is JSON
    #[arg(long = "log_structured", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    log_structured: Option<bool>,
    /// Whether the access log is put aside every hour, under a name with the hour
    #[arg(long = "rotate_per_hour", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    rotate_per_hour: Option<bool>,
    /// No effect: no line of the log names source lines
    #[arg(long = "log_filter_caller", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    log_filter_caller: Option<bool>,
}

/// motan-go's flags of several letters: those that may come with one dash.
const SINGLE: &[&str] = &[
    "port",
    "eport",
    "hport",
    "mport",
    "mhost",
    "pidfile",
    "localIP",
    "idc",
    "pool",
    "application",
    "recover",
    "log_dir",
    "log_async",
    "log_buffer_size",
    "log_level",
    "log_structured",
    "rotate_per_hour",
    "log_filter_caller",
];

fn boolean(text: &str) -> Result<bool, String> {
    go_bool(text).ok_or_else(|| "write true or false".to_owned())
}

fn level(text: &str) -> Result<String, String> {
    let wrong = "write trace, debug, info, warn, error, dpanic, panic or fatal";
    log_level(text).map(str::to_owned).ok_or_else(|| wrong.to_owned())
}

/// Arguments as clap takes them: flags of motan-go get their second dash, and where motan-go's agent was
/// started, with flags alone, `run` is put in.
pub fn arguments(given: Vec<OsString>) -> Vec<OsString> {
    let is_motan = |flag: &OsString| {
        let text = flag.to_str()?;
        let name = text.strip_prefix("--").or(text.strip_prefix('-'))?;
        let name = name.split('=').next().unwrap_or(name);
        SINGLE.contains(&name).then_some(text.starts_with("--"))
    };
    let mut all = given.into_iter();
    let mut arguments: Vec<OsString> = all.next().into_iter().collect();
    let rest: Vec<OsString> = all.collect();
    let starts = rest.first().is_some_and(|first| {
        is_motan(first).is_some() || first == "-c" || first.to_str().is_some_and(|t| t.starts_with("-c="))
    });
    let runs = starts || rest.iter().any(|word| word == "run" || word == "import");
    if starts {
        arguments.push("run".into());
    }
    for word in rest {
        match is_motan(&word) {
            Some(false) if runs => {
                let mut double = OsString::from("-");
                double.push(word);
                arguments.push(double);
            }
            _ => arguments.push(word),
        }
    }
    arguments
}

impl Motan {
    pub(super) fn flags(&self) -> Flags {
        let Self {
            port, eport, hport, mport, mhost, local_ip, log_structured, rotate_per_hour, log_buffer_size, ..
        } = *self;
        let above_zero = |port: Option<u16>| port.filter(|port| *port > 0);
        Flags {
            port: above_zero(port),
            eport: above_zero(eport),
            hport: above_zero(hport),
            mport: above_zero(mport),
            mhost,
            pidfile: self.pidfile.clone(),
            local_ip,
            idc: self.idc.clone(),
            pool: self.pool.clone(),
            application: self.application.clone(),
            log_dir: self.log_dir.clone(),
            log_structured,
            rotate_per_hour,
            log_buffer_size,
        }
    }
}

impl Args {
    /// The file or folder, with motan-go's defaults. An error when nothing was named and the default is not there.
    pub fn config(&self) -> anyhow::Result<PathBuf> {
        if let Some(named) = &self.config {
            return Ok(named.clone());
        }
        let default = if self.motan.pool.is_some() { "./" } else { "./motan.yaml" };
        anyhow::ensure!(
            Path::new(default).exists(),
            "no configuration: name it with `-c FILE` (there is no {default})"
        );
        Ok(default.into())
    }

    /// What of the log is shown, if a flag says so.
    pub fn log_filter(&self) -> Option<String> {
        self.motan.log_level.clone()
    }

    /// What surrounds the file and decides with it.
    pub fn surroundings(&self) -> Surroundings {
        Surroundings::of_process(self.motan.flags())
    }

    /// Whether what management calls brought before shall come back.
    pub fn recovers(&self) -> bool {
        self.recover.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: Args,
    }

    fn converted(line: &str) -> String {
        let words = arguments(line.split(' ').map(OsString::from).collect());
        words.iter().map(|w| w.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn flags_of_motan_go_are_taken_in_either_spelling() {
        assert_eq!(converted("a run -c f -port 1 --mport=2 -idc x"), "a run -c f --port 1 --mport=2 --idc x");
        assert_eq!(converted("a -c f -recover"), "a run -c f --recover");
        assert_eq!(converted("a -port=7"), "a run --port=7");
        assert_eq!(converted("a --log debug run -log_dir ."), "a --log debug run --log_dir .");
        assert_eq!(converted("a stat -o json"), "a stat -o json");
        let line =
            converted("a -port 19 -eport 20 -mport 21 -localIP 127.0.0.1 -log_async=false -recover -log_level WARN");
        let run = Cli::parse_from(line.split(' ').filter(|w| *w != "run")).run;
        let flags = run.motan.flags();
        assert_eq!((flags.port, flags.eport, flags.mport), (Some(19), Some(20), Some(21)));
        assert_eq!(flags.local_ip, Some([127, 0, 0, 1].into()));
        assert_eq!(
            (run.motan.log_async, run.recover, run.log_filter().as_deref()),
            (Some(false), Some(true), Some("warn"))
        );
    }

    #[test]
    fn every_flag_is_in_the_table() {
        use crate::config::motan::PARTS;
        let part = PARTS.iter().find(|p| p.title == "Flags").unwrap();
        let rows: Vec<_> = part.rows.iter().map(|row| row.name.trim_start_matches('-')).filter(|n| *n != "c").collect();
        let (mut rows, mut known) = (rows, SINGLE.to_vec());
        rows.sort_unstable();
        known.sort_unstable();
        assert_eq!(rows, known);
        // And clap knows each.
        for name in SINGLE {
            let line = match *name {
                "localIP" | "mhost" => format!("a --{name}=127.0.0.1"),
                "log_level" => "a --log_level=info".to_owned(),
                _ => format!("a --{name}=1"),
            };
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
