//! The centre scales a Deployment of a real Kubernetes API server, with an account that may do that and nothing else.

use std::{fs, path::Path};

use host::{
    Center, Cmd, Need, Temp, etcd, free_port, lacks,
    need::peer,
    program::{Place, Server},
    until,
};
use serde_json::{Value, json};

const NEEDS: &[Need] =
    &[Need::Peer("kube-apiserver"), Need::Program("etcd"), Need::Program("openssl"), Need::Program("curl")];

/// An API server with an etcd of its own.
struct Cluster {
    server: Server,
    _etcd: Server,
}

impl Cluster {
    fn start() -> Self {
        let etcd = etcd::etcd(&Place::default());
        let (dir, port) = (Temp::new(), free_port());
        let (key, public) = (dir.file("sa.key"), dir.file("sa.pub"));
        Cmd::new("openssl").args(["genrsa", "-out"]).arg(key.display()).arg("2048").run().ok();
        Cmd::new("openssl")
            .args(["rsa", "-in"])
            .arg(key.display())
            .args(["-pubout", "-out"])
            .arg(public.display())
            .run()
            .ok();
        let tokens = dir.write("tokens.csv", "all-token,admin,1,system:masters\nscaler-token,scaler,2\n");
        let cmd = Cmd::new(peer("kube-apiserver").join("kube-apiserver"))
            .arg(format!("--etcd-servers=http://{}", etcd.addr()))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", dir.file("certs").display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", public.display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .arg(format!("--token-auth-file={}", tokens.display()))
            .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16"])
            .args(["--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"]);
        let server = Server::start(([127, 0, 0, 1], port).into(), dir, cmd);
        let cluster = Self { server, _etcd: etcd };
        until("the API server is ready", || cluster.ask("GET", "/readyz", None).contains("ok"));
        cluster
    }

    /// What it answers to an admin.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> String {
        let url = format!("https://{}{path}", self.server.addr());
        let mut cmd = Cmd::new("curl").args(["-sk", "--max-time", "20", "-X", method]);
        cmd = cmd.args(["-H", "Authorization: Bearer all-token", "-H", "Content-Type: application/json"]);
        if let Some(body) = body {
            cmd = cmd.arg("-d").arg(body);
        }
        cmd.arg(url).run().out
    }

    fn make(&self, path: &str, body: &Value) {
        // Its own first steps (namespaces, roles) go on after it says that it is ready.
        until("it is made", || {
            let said: Value = serde_json::from_str(&self.ask("POST", path, Some(body))).unwrap_or_default();
            said["metadata"]["name"] == body["metadata"]["name"] || said["reason"] == "AlreadyExists"
        });
    }

    fn replicas(&self, namespace: &str) -> Value {
        let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/echo");
        serde_json::from_str::<Value>(&self.ask("GET", &path, None)).unwrap()["spec"]["replicas"].clone()
    }

    /// How the account `scaler` reaches it.
    fn kubeconfig(&self, at: &Path) {
        let certificate = self.server.dir().join("certs/apiserver.crt");
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: {}}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: scaler-token}}}}]
",
            self.server.addr(),
            certificate.display()
        );
        fs::write(at, text).unwrap();
    }
}

fn deployment() -> Value {
    let container = json!({"name": "echo", "image": "echo"});
    let template = json!({"metadata": {"labels": {"app": "echo"}}, "spec": {"containers": [container]}});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "echo"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "echo"}}, "template": template}})
}

#[test]
fn kubernetes_deployments_are_scaled_with_the_least_rights() {
    if lacks(NEEDS) {
        return;
    }
    let cluster = Cluster::start();
    for namespace in ["shop", "other"] {
        cluster.make("/api/v1/namespaces", &json!({"metadata": {"name": namespace}}));
        cluster.make(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"), &deployment());
    }
    let rule = json!({"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["get", "patch"]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop";
    cluster.make(&format!("{rbac}/roles"), &json!({"metadata": {"name": "scaler"}, "rules": [rule]}));
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "scaler"});
    let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "scaler"});
    let binding = json!({"metadata": {"name": "scaler"}, "roleRef": role, "subjects": [subject]});
    cluster.make(&format!("{rbac}/rolebindings"), &binding);

    let dir = Temp::new();
    let kubeconfig = dir.file("kubeconfig");
    cluster.kubeconfig(&kubeconfig);
    let center = Center::start(&format!(
        "scale:
  drivers:
    cluster:
      kind: kubernetes
      options: {{name: echo, namespace: shop, kubeconfig: {}}}
      allow: [namespace]
pools:
  policies:
    - {{service: echo, group: shop, driver: cluster, max: 5}}
    - {{service: echo, group: other, driver: cluster, max: 5, options: {{namespace: other}}}}
",
        kubeconfig.display()
    ));
    let set = |group: &str, size: u32| {
        let body = json!({"service": "echo", "group": group, "size": size, "reason": "test"});
        center.send("POST", "/v1/scale", &body)
    };
    // Rights are there a moment after they were given.
    until("it may", || set("shop", 4).0 == 200);
    assert_eq!(cluster.replicas("shop"), 4);
    // Somebody else scales: the centre asks, it does not remember.
    let path = "/apis/apps/v1/namespaces/shop/deployments/echo/scale";
    let mut scale: Value = serde_json::from_str(&cluster.ask("GET", path, None)).unwrap();
    scale["spec"]["replicas"] = json!(2);
    cluster.ask("PUT", path, Some(&scale));
    let rows = center.get("/v1/scale");
    let row = rows.as_array().unwrap().iter().find(|row| row["group"] == "shop").unwrap();
    assert_eq!((&row["size"], &row["events"][0]["to"]), (&json!(2), &json!(4)));
    assert_eq!(set("shop", 6).0, 400, "not beyond the policy's bounds");
    let (status, said) = set("other", 3);
    assert_eq!(status, 503);
    assert!(said["message"].as_str().unwrap().contains("forbidden"), "{said}");
    assert_eq!((cluster.replicas("other"), cluster.replicas("shop")), (json!(1), json!(2)));
}
