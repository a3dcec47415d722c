//! `kubernetes`: the number of replicas of a Deployment or StatefulSet, by its scale subresource.
//!
//! The account that the centre uses needs `get` and `patch` on `deployments/scale` (or `statefulsets/scale`) of the
//! namespace and nothing else.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use futures_util::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    autoscaling::v1::Scale,
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use model::kind::Value;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::{BuildCx, Driver};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Name of the Deployment or StatefulSet.
    name: String,
    /// What it is.
    #[serde(default)]
    resource: Resource,
    /// Where it is.
    #[serde(default = "namespace")]
    namespace: String,
    /// How the API server is reached; without it the environment says so (`KUBECONFIG`, or the Pod's own account).
    kubeconfig: Option<PathBuf>,
    /// Context of that file, if not its current one.
    context: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Resource {
    #[default]
    Deployment,
    StatefulSet,
}

fn namespace() -> String {
    "default".to_owned()
}

/// Requests whose keys are remembered.
const KEYS: usize = 64;

pub(super) fn build(options: &Value, _cx: &BuildCx) -> anyhow::Result<Arc<dyn Driver>> {
    let options: Options = serde_yaml::from_value(options.clone())?;
    let plain = |text: &str| {
        !text.is_empty() && text.len() < 254 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
    };
    for (key, text) in [("name", &options.name), ("namespace", &options.namespace)] {
        if !plain(text) {
            bail!("`{key}: {text}` is no name in Kubernetes; use letters, digits, `-` and `.`");
        }
    }
    Ok(Arc::new(Kubernetes { options, client: OnceCell::new(), keys: Mutex::default() }))
}

struct Kubernetes {
    options: Options,
    /// Made when it is first needed: a cluster that is away must not keep the centre from starting.
    client: OnceCell<Client>,
    keys: Mutex<VecDeque<String>>,
}

impl Kubernetes {
    async fn client(&self) -> anyhow::Result<Client> {
        let making = async {
            let Options { kubeconfig, context, .. } = &self.options;
            let config = match kubeconfig {
                Some(path) => {
                    let file = Kubeconfig::read_from(path)
                        .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
                    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
                    Config::from_custom_kubeconfig(file, &options).await?
                }
                None => Config::infer().await.context("no Kubernetes is configured; set `kubeconfig`")?,
            };
            Ok::<_, anyhow::Error>(Client::try_from(config)?)
        };
        self.client.get_or_try_init(|| making).await.cloned()
    }

    async fn read(&self) -> anyhow::Result<Scale> {
        let (client, Options { name, namespace, resource, .. }) = (self.client().await?, &self.options);
        let read = match resource {
            Resource::Deployment => Api::<Deployment>::namespaced(client, namespace).get_scale(name).await,
            Resource::StatefulSet => Api::<StatefulSet>::namespaced(client, namespace).get_scale(name).await,
        };
        read.map_err(|error| self.told(error))
    }

    async fn write(&self, size: u32) -> anyhow::Result<()> {
        let (client, Options { name, namespace, resource, .. }) = (self.client().await?, &self.options);
        let patch = Patch::Merge(serde_json::json!({"spec": {"replicas": size}}));
        let how = PatchParams { field_manager: Some("sockmesh-center".to_owned()), ..PatchParams::default() };
        let written = match resource {
            Resource::Deployment => {
                Api::<Deployment>::namespaced(client, namespace).patch_scale(name, &how, &patch).await
            }
            Resource::StatefulSet => {
                Api::<StatefulSet>::namespaced(client, namespace).patch_scale(name, &how, &patch).await
            }
        };
        written.map(|_| ()).map_err(|error| self.told(error))
    }

    /// The API server's own words, and what they are about.
    fn told(&self, error: kube::Error) -> anyhow::Error {
        let Options { name, namespace, resource, .. } = &self.options;
        let what = format!("scale of the {resource:?} `{name}` in namespace `{namespace}`");
        match error {
            kube::Error::Api(status) => anyhow::anyhow!("{what}: {} ({})", status.message, status.code),
            other => anyhow::Error::new(other).context(what),
        }
    }
}

impl Driver for Kubernetes {
    fn size(&self) -> BoxFuture<'_, anyhow::Result<u32>> {
        Box::pin(async move {
            let replicas = self.read().await?.spec.and_then(|spec| spec.replicas).unwrap_or(0);
            Ok(u32::try_from(replicas).unwrap_or(0))
        })
    }

    fn scale<'a>(&'a self, size: u32, key: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            if i32::try_from(size).is_err() {
                bail!("{size} replicas are more than Kubernetes can count");
            }
            if self.keys.lock().iter().any(|known| known == key) {
                return Ok(());
            }
            self.write(size).await?;
            let mut keys = self.keys.lock();
            keys.push_back(key.to_owned());
            if keys.len() > KEYS {
                keys.pop_front();
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::{
        Json, Router,
        extract::{Path, State},
        http::StatusCode,
        routing::get,
    };
    use serde_json::{Value as Any, json};

    use super::*;

    type Replicas = Arc<(AtomicU32, AtomicU32)>;

    fn scale(replicas: u32) -> Any {
        let metadata = json!({"name": "echo", "namespace": "shop", "resourceVersion": "1"});
        let (spec, status) = (json!({"replicas": replicas}), json!({"replicas": replicas}));
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
    }

    fn refused(code: u16, message: &str) -> (StatusCode, Json<Any>) {
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": "x", "code": code});
        (StatusCode::from_u16(code).unwrap(), Json(body))
    }

    async fn read(State(at): State<Replicas>, Path((space, name)): Path<(String, String)>) -> (StatusCode, Json<Any>) {
        match (space.as_str(), name.as_str()) {
            ("shop", "echo") => (StatusCode::OK, Json(scale(at.0.load(Ordering::Relaxed)))),
            ("shop", "locked") => refused(403, "deployments.apps \"locked\" is forbidden"),
            _ => refused(404, "deployments.apps \"gone\" not found"),
        }
    }

    async fn write(State(at): State<Replicas>, Json(patch): Json<Any>) -> Json<Any> {
        let replicas = u32::try_from(patch["spec"]["replicas"].as_u64().unwrap()).unwrap();
        at.0.store(replicas, Ordering::Relaxed);
        at.1.fetch_add(1, Ordering::Relaxed);
        Json(scale(replicas))
    }

    /// An API server of one call, as recorded from a real one, and a kubeconfig for it.
    async fn server() -> (Replicas, PathBuf) {
        let replicas = Replicas::default();
        replicas.0.store(2, Ordering::Relaxed);
        let path = "/apis/apps/v1/namespaces/{space}/deployments/{name}/scale";
        // A patch says that it is `application/merge-patch+json`, which axum takes for JSON.
        let router = Router::new().route(path, get(read).patch(write)).with_state(replicas.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let file = std::env::temp_dir().join(format!("sockmesh-kube-{}-{}", std::process::id(), fastrand::u64(..)));
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: '{url}'}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}], users: [{{name: u, user: {{}}}}]}}"
        );
        std::fs::write(&file, text).unwrap();
        (replicas, file)
    }

    fn driver(name: &str, file: &std::path::Path) -> Arc<dyn Driver> {
        let yaml = format!("{{name: {name}, namespace: shop, kubeconfig: '{}'}}", file.display());
        build(&serde_yaml::from_str(&yaml).unwrap(), &BuildCx::default()).unwrap()
    }

    #[tokio::test]
    async fn replicas_are_read_and_written_once_for_each_key() {
        let (replicas, file) = server().await;
        let echo = driver("echo", &file);
        assert_eq!(echo.size().await.unwrap(), 2);
        echo.scale(5, "one").await.unwrap();
        echo.scale(5, "one").await.unwrap();
        assert_eq!((echo.size().await.unwrap(), replicas.1.load(Ordering::Relaxed)), (5, 1));
        for (name, part) in [("gone", "not found (404)"), ("locked", "is forbidden (403)")] {
            let said = format!("{:#}", driver(name, &file).size().await.unwrap_err());
            assert!(said.contains(part) && said.contains("in namespace `shop`"), "{said}");
        }
        std::fs::remove_file(file).unwrap();
    }

    #[tokio::test]
    async fn options_that_cannot_work_are_told() {
        let built = |yaml: &str| build(&serde_yaml::from_str(yaml).unwrap(), &BuildCx::default());
        for (yaml, part) in [
            ("{}", "name"),
            ("{name: a/b}", "is no name in Kubernetes"),
            ("{name: a, namespace: ''}", "is no name in Kubernetes"),
            ("{name: a, resource: pod}", "pod"),
            ("{name: a, colour: red}", "colour"),
        ] {
            let said = format!("{:#}", built(yaml).err().expect(yaml));
            assert!(said.contains(part), "{said}");
        }
        let away = built("{name: a, kubeconfig: /nowhere/at/all}").unwrap();
        let said = format!("{:#}", away.size().await.unwrap_err());
        assert!(said.contains("/nowhere/at/all"), "{said}");
    }
}
