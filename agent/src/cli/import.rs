//! `sockmesh import FILE`: a motan-go configuration in the native form.

use std::{path::PathBuf, process::ExitCode};

use super::run::Motan;
use crate::config::{self, motan::Surroundings};

/// Arguments of `sockmesh import`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// motan-go's file, or the folder of its pool mode
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Name of the agent's program, in the name of the access log
    #[arg(long, value_name = "NAME", default_value = "sockmesh")]
    pub program: String,
    #[command(flatten)]
    pub(super) motan: Motan,
}

/// Prints the native form on standard output, and line by line what is not supported on standard error. The
/// exit code is 0 when everything is supported, 2 when something is not, and 1, with nothing printed on
/// standard output, when the file has mistakes.
///
/// # Errors
/// The file is not motan-go's, or output cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let around = Surroundings { program: args.program.clone(), ..Surroundings::of_process(args.motan.flags()) };
    let told = |warnings: &[config::Problem]| {
        for warning in warnings {
            eprintln!("{}", warning.line_in(Some(&args.file)));
        }
    };
    let loaded = match config::load_with(&args.file, &around) {
        Ok(loaded) => loaded,
        Err(errors) => {
            told(&errors.warnings);
            eprintln!("{errors}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let Some(imported) = loaded.motan else {
        anyhow::bail!("{} is in the native form already", args.file.display());
    };
    super::print(&imported.yaml())?;
    told(&loaded.warnings);
    Ok(if loaded.warnings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
