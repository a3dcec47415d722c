//! `switcher`: a named flag that turns a service, or single methods of it, off.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use serde::Deserialize;

use super::{CallCx, Filter, Shows, Verdict};
use crate::{
    call::{CallError, ErrorKind, Request, exception::DEGRADED},
    kind::{self, BuildCx, Value},
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    name: Option<String>,
    methods: BTreeMap<String, String>,
}

struct Switch {
    flag: Arc<AtomicBool>,
    refused: AtomicU64,
}

struct Switcher {
    service: Option<Switch>,
    methods: BTreeMap<String, Switch>,
}

pub(super) fn build(options: &Value, cx: &BuildCx) -> anyhow::Result<Arc<dyn Filter>> {
    let Options { name, methods } = kind::options(options)?;
    anyhow::ensure!(name.is_some() || !methods.is_empty(), "no switcher is named; write `name` or `methods`");
    let switch = |name: &str| Switch { flag: cx.switchers.register(name, false), refused: AtomicU64::new(0) };
    Ok(Arc::new(Switcher {
        service: name.as_deref().map(switch),
        methods: methods.iter().map(|(method, name)| (method.clone(), switch(name))).collect(),
    }))
}

impl Filter for Switcher {
    fn on_request(&self, _: &mut CallCx, req: &mut Request) -> Verdict {
        let of_method = if self.methods.is_empty() { None } else { self.methods.get(&*req.call.method) };
        for switch in self.service.iter().chain(of_method) {
            if switch.flag.load(Relaxed) {
                switch.refused.fetch_add(1, Relaxed);
                return Verdict::fail(CallError::mesh(ErrorKind::Degraded, DEGRADED));
            }
        }
        Verdict::Continue
    }

    fn figures(&self, show: &mut Shows<'_>) {
        let service = self.service.iter().map(|switch| ("", switch));
        for (of, switch) in service.chain(self.methods.iter().map(|(method, switch)| (method.as_str(), switch))) {
            show.state("on", of, switch.flag.load(Relaxed).into());
            show.event("refused", of, switch.refused.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{Bench, motan};

    #[tokio::test]
    async fn turns_a_service_or_a_method_off_while_it_is_on() {
        let cx = BuildCx::default();
        let b = Bench::with(build, "{name: web.off, methods: {slow: web.slow.off}}", &cx);
        let call = async |method: &str| b.call(motan(method), || Ok(b.good())).await.map_err(|e| e.kind);
        assert!(call("echo").await.is_ok() && call("slow").await.is_ok());
        cx.switchers.set("web.slow.off", true);
        assert!(call("echo").await.is_ok());
        assert_eq!(call("slow").await.unwrap_err(), ErrorKind::Degraded);
        cx.switchers.set("web.off", true);
        assert_eq!(call("echo").await.unwrap_err(), ErrorKind::Degraded);
        assert_eq!((b.state("on", ""), b.event("refused", ""), b.event("refused", "slow")), (1, 1, 1));
        cx.switchers.set("web.off", false);
        assert!(call("echo").await.is_ok());
        assert!(build(&Value::Null, &cx).err().unwrap().to_string().contains("no switcher"));
    }
}
