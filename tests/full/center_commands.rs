//! Commands of a centre, obeyed where a site's agents listen to Consul or Nacos.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use host::{
    Need,
    consul::Consul,
    lacks,
    nacos::Nacos,
    site::{Texts, obeys},
};

/// What Consul holds for idc-a.
struct InConsul<'a>(&'a Consul);

impl Texts for InConsul<'_> {
    fn get(&self) -> Option<String> {
        let found = self.0.get("/v1/kv/motan/command/idc-a");
        let value = found[0]["Value"].as_str()?;
        Some(String::from_utf8(STANDARD.decode(value).unwrap()).unwrap())
    }

    fn put(&self, text: &str) {
        self.0.put("/v1/kv/motan/command/idc-a", text);
    }
}

#[test]
fn consul_a_site_that_listens_to_it_obeys() {
    if lacks(&[Need::Peer("consul")]) {
        return;
    }
    let consul = Consul::start();
    obeys("consul", &format!("address: '{}', ttl: 3s", consul.addr()), &InConsul(&consul));
}

/// What Nacos holds for idc-a.
struct InNacos<'a>(&'a Nacos);

impl Texts for InNacos<'_> {
    fn get(&self) -> Option<String> {
        self.0.config("motan.command", "idc-a")
    }

    fn put(&self, text: &str) {
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.0.ask("POST", "/nacos/v1/cs/configs", &format!("dataId=motan.command&group=idc-a&content={escaped}"));
    }
}

#[test]
fn nacos_a_site_that_listens_to_it_obeys() {
    if lacks(&[Need::Peer("rnacos")]) {
        return;
    }
    for api in ["grpc", "http"] {
        let nacos = Nacos::start();
        obeys("nacos", &format!("address: '{}', api: {api}", nacos.addr()), &InNacos(&nacos));
    }
}
