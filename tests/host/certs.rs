//! Certificates for servers and programs of others, made by `openssl`.

use std::path::PathBuf;

use crate::{Cmd, Temp};

/// A folder with `ca.pem`; `server.pem` and `client.pem` that it signed, each with its key in `server.key` and
/// `client.key` and both together in `server.both` and `client.both`. The server is `localhost` and `127.0.0.1`.
pub struct Certs(Temp);

impl Certs {
    /// Makes them. Needs the program `openssl`.
    #[track_caller]
    pub fn new() -> Self {
        let certs = Self(Temp::new());
        let file = |name: &str| certs.file(name).display().to_string();
        let new = |name: &str, subject: &str| {
            Cmd::new("openssl")
                .args(["req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-days", "2"])
                .args(["-keyout", &file(&format!("{name}.key"))])
        };
        new("ca", "/CN=test authority").args(["-x509", "-out", &file("ca.pem")]).run().ok();
        for (name, subject) in [("server", "/CN=localhost"), ("client", "/CN=client")] {
            let names = certs.0.write("names", "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
            let (request, pem) = (file(&format!("{name}.csr")), file(&format!("{name}.pem")));
            new(name, subject).args(["-out", &request]).run().ok();
            Cmd::new("openssl")
                .args(["x509", "-req", "-days", "2", "-in", &request, "-out", &pem, "-extfile"])
                .arg(names.display())
                .args(["-CA", &file("ca.pem"), "-CAkey", &file("ca.key"), "-CAcreateserial"])
                .run()
                .ok();
            let read = |end: &str| std::fs::read_to_string(certs.file(&format!("{name}.{end}"))).unwrap();
            certs.0.write(&format!("{name}.both"), read("key") + &read("pem"));
        }
        certs
    }

    /// One of the files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.file(name)
    }
}

impl Default for Certs {
    fn default() -> Self {
        Self::new()
    }
}
