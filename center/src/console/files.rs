//! The files, sorted by name. A test compares the list with the folder.

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/console/", $name)) as &[u8])),*]
    };
}

/// Names below `/console/` and contents.
pub const FILES: &[(&str, &[u8])] = files! {
    "css/base.css"
    "css/parts.css"
    "icon.svg"
    "index.html"
    "js/api.js"
    "js/figures.js"
    "js/format.js"
    "js/i18n.js"
    "js/icons.js"
    "js/live.js"
    "js/main.js"
    "js/pages/access.js"
    "js/pages/agents.js"
    "js/pages/alerts.js"
    "js/pages/audit.js"
    "js/pages/capacity.js"
    "js/pages/commands.js"
    "js/pages/graph.js"
    "js/pages/login.js"
    "js/pages/parts/cards.js"
    "js/pages/parts/curves.js"
    "js/pages/parts/demo.js"
    "js/pages/parts/layout.js"
    "js/pages/parts/pool.js"
    "js/pages/parts/preview.js"
    "js/pages/registry.js"
    "js/pages/service.js"
    "js/pages/services.js"
    "js/pages/switch.js"
    "js/plot.js"
    "js/route.js"
    "js/table.js"
    "js/theme.js"
    "js/ui.js"
    "js/zh.js"
    "vendor/README.md"
    "vendor/SHA256SUMS"
    "vendor/htm-preact-standalone.js"
    "vendor/htm.LICENSE"
    "vendor/preact.LICENSE"
    "vendor/uPlot.LICENSE"
    "vendor/uPlot.esm.js"
    "vendor/uPlot.min.css"
};
