//! `sockmesh-center user` and `token`: accounts without a running centre, above all the first one.

use std::{io::Read, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use model::{
    center::{NewToken, NewUser, Role, UserChange},
    kind,
};

use crate::{
    audit::Audit,
    auth::{Actor, Auth, random},
    clock::now_ms,
    config::Config,
    store,
};

/// People with passwords.
#[derive(Clone, Debug, Subcommand)]
pub enum UserVerb {
    /// Add a person; prints a password unless one is given
    Add(UserAdd),
    /// Give a person another password; prints it unless one is given
    Password(UserPassword),
    /// Remove a person, with sessions and own tokens
    Remove {
        /// Who
        name: String,
    },
    /// List people and their roles
    List,
}

/// Arguments of `user add`.
#[derive(Clone, Debug, Args)]
pub struct UserAdd {
    /// Who
    pub name: String,
    /// What the person may do there
    #[arg(long, value_name = "ROLE", default_value = "viewer")]
    pub role: RoleName,
    /// For which groups of services; `*` stands for any characters
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    pub group: String,
    /// Read the password from this file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// Arguments of `user password`.
#[derive(Clone, Debug, Args)]
pub struct UserPassword {
    /// Who
    pub name: String,
    /// Read the password from this file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// Tokens for agents and programs.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token and print it: it is told this once
    Add(TokenAdd),
    /// Remove a token
    Remove {
        /// As `token list` names it
        id: String,
    },
    /// List tokens
    List,
}

/// Arguments of `token add`.
#[derive(Clone, Debug, Args)]
pub struct TokenAdd {
    /// What it is for
    #[arg(long, default_value = "")]
    pub remark: String,
    /// Agents that it may speak for, `HOST/NAME`; `*` stands for any characters
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    pub agents: Vec<String>,
    /// Services that these agents may register [default: any]
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',', requires = "agents")]
    pub services: Vec<String>,
    /// What it may do besides
    #[arg(long, value_name = "ROLE")]
    pub role: Option<RoleName>,
    /// For which groups of services
    #[arg(long, value_name = "PATTERN", default_value = "*", requires = "role")]
    pub group: String,
    /// How long it holds [default: for ever]
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub life: Option<Duration>,
}

/// A role as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Reads
    Viewer,
    /// Gives commands
    Operator,
    /// Changes rules, policies and accounts
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Operator => Self::Operator,
            RoleName::Admin => Self::Admin,
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    model::value::duration(text).map_err(|wrong| wrong.of(text))
}

/// Accounts of a centre that does not run, or that shares its store.
struct Accounts {
    auth: std::sync::Arc<Auth>,
    actor: Actor,
}

impl Accounts {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let cx = store::BuildCx { data: config.data.clone(), name: format!("{}-accounts", config.name), passing: true };
        let built = kind::build("store", store::KINDS, &config.store.kind, &config.store.options, &cx);
        let store = built.map_err(|error| match store::in_use(&config.data) {
            true => error.context(
                "accounts of a running centre are changed by its console or API (POST /v1/users, POST /v1/tokens)",
            ),
            false => error,
        })?;
        let auth = Auth::new(&config.api, config.auth.clone(), store.clone(), Audit::new(store));
        auth.load().await?;
        let actor = Actor { name: "command line".to_owned(), ..Actor::anyone(String::new()) };
        Ok(Self { auth, actor })
    }
}

/// Runs `sockmesh-center user`; answers what is to be printed.
///
/// # Errors
/// The store is in use or cannot be opened; the change is refused.
pub async fn user(config: &Config, verb: &UserVerb) -> anyhow::Result<String> {
    let Accounts { auth, actor } = Accounts::open(config).await?;
    match verb {
        UserVerb::Add(UserAdd { name, role, group, password_file }) => {
            let (password, told) = password(password_file.as_ref())?;
            let roles = vec![(group.clone(), (*role).into())];
            auth.add_user(&actor, NewUser { name: name.clone(), password, roles }).await?;
            Ok(told.map_or_else(String::new, |password| format!("{password}\n")))
        }
        UserVerb::Password(UserPassword { name, password_file }) => {
            let (password, told) = password(password_file.as_ref())?;
            auth.change_user(&actor, name, UserChange { password: Some(password), roles: None }).await?;
            Ok(told.map_or_else(String::new, |password| format!("{password}\n")))
        }
        UserVerb::Remove { name } => {
            auth.remove_user(&actor, name).await?;
            Ok(String::new())
        }
        UserVerb::List => {
            let users = auth.users(&actor)?;
            Ok(users.into_iter().map(|user| format!("{}\t{}\n", user.name, roles(&user.roles))).collect())
        }
    }
}

/// Runs `sockmesh-center token`; answers what is to be printed.
///
/// # Errors
/// As [`user`].
pub async fn token(config: &Config, verb: &TokenVerb) -> anyhow::Result<String> {
    let Accounts { auth, actor } = Accounts::open(config).await?;
    match verb {
        TokenVerb::Add(add) => {
            let TokenAdd { remark, agents, services, role, group, life } = add.clone();
            let life = life.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
            let new = NewToken {
                remark,
                agents,
                services,
                roles: role.map(|role| (group, role.into())).into_iter().collect(),
                until_ms: life.map(|life| now_ms().saturating_add(life)),
                mine: false,
            };
            Ok(format!("{}\n", auth.add_token(&actor, new).await?.token))
        }
        TokenVerb::Remove { id } => {
            auth.remove_token(&actor, id).await?;
            Ok(String::new())
        }
        TokenVerb::List => {
            let line = |row: model::center::TokenRow| {
                let (agents, services) = (row.agents.join(","), row.services.join(","));
                format!("{}\t{}\t{agents}\t{services}\t{}\t{}\n", row.id, row.owner, roles(&row.roles), row.remark)
            };
            Ok(auth.tokens(&actor).into_iter().map(line).collect())
        }
    }
}

fn roles(roles: &[(String, Role)]) -> String {
    let all: Vec<String> = roles.iter().map(|(group, role)| format!("{group}={role:?}").to_lowercase()).collect();
    all.join(",")
}

/// The password of a file, or a new one that is to be told.
fn password(file: Option<&PathBuf>) -> anyhow::Result<(String, Option<String>)> {
    let Some(file) = file else {
        let password = random(15);
        return Ok((password.clone(), Some(password)));
    };
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().lock().take(4096).read_to_string(&mut text).context("standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    let password = text.trim_end_matches(['\r', '\n']);
    if password.contains('\n') {
        bail!("{}: one line with the password was expected", file.display());
    }
    Ok((password.to_owned(), None))
}
