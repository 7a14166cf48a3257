//! The command line as a whole; each subcommand's arguments are beside its code.

use crate::{
    bench::BenchArgs, generate::GenerateArgs, key::KeyArgs, model::ModelArgs, terminal::TerminalArgs,
    up::UpArgs,
};
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  sdxl up                                    a cluster here, with the model of the project
  sdxl up --base ~/stable-diffusion-xl-base-1.0 --replicas base-unet=2
  sdxl generate \"a photo of a cat\"           a picture from the cluster here
  sdxl generate \"a photo of a cat\" --steps 30 --seed 7 -o cat.png
  sdxl bench --rate 2 --duration 120         what a cluster makes of two requests a second
  sdxl key new --tenant team-7               a key for those who may call a cluster
  sdxl model                                 what a cluster serves

Each flag has an environment variable, which its help names.";

/// SDXL as a cluster: starts one on this machine, makes pictures with any, and measures any.
#[derive(Debug, Parser)]
#[command(name = "sdxl", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) terminal: TerminalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole cluster on this machine, every service in a process of its own
    Up(Box<UpArgs>),
    /// Make pictures of a prompt with a running cluster
    Generate(Box<GenerateArgs>),
    /// Measure a running cluster under a load of requests
    Bench(Box<BenchArgs>),
    /// Tell what a running cluster serves
    Model(ModelArgs),
    /// Make a key for callers of a cluster
    Key(KeyArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_and_a_help_text() {
        for command in Cli::command().get_subcommands() {
            let flags = command
                .get_arguments()
                .filter(|a| a.get_long().is_some() && !["help", "version"].contains(&a.get_id().as_str()));
            for flag in flags.filter(|a| !a.is_hide_set()) {
                let id = flag.get_id().as_str();
                let variable = format!("SDXL_{}", id.to_uppercase());
                let name = format!("{} --{id}", command.get_name());
                assert_eq!(flag.get_env().and_then(|v| v.to_str()), Some(variable.as_str()), "{name}");
                assert!(flag.get_help().is_some(), "{name}");
                assert_eq!(flag.get_long().map(|l| l.replace('-', "_")).as_deref(), Some(id), "{name}");
            }
        }
    }

    #[test]
    fn each_subcommand_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains(&format!("sdxl {}", command.get_name())), "{}", command.get_name());
        }
    }
}
