//! Chromium without a window, told what to do over WebDriver.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{Cmd, Proc, Temp, free_port, http, until, until_some, wait::within};

/// How long one call may take: starting Chromium on a machine that does nothing else takes seconds.
const CALL: Duration = Duration::from_secs(90);

/// How a browser shall be.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// `en-US` or `zh-CN`.
    pub language: &'static str,
    /// Whether it prefers dark pages.
    pub dark: bool,
    /// Width and height of its pages.
    pub size: (u32, u32),
}

impl Default for Look {
    fn default() -> Self {
        Self { language: "en-US", dark: false, size: (1440, 900) }
    }
}

/// A browser with one page. Ends, with its driver, on drop.
pub struct Browser {
    driver: SocketAddr,
    session: String,
    _proc: Proc,
    _dir: Temp,
}

impl Browser {
    /// Starts one. Needs the programs `chromedriver` and `chromium`.
    #[track_caller]
    pub fn start(look: Look) -> Self {
        let driver = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = Temp::new();
        let mut proc = Cmd::new("chromedriver").arg(format!("--port={}", driver.port())).spawn(&dir.file("log"));
        until("chromedriver is ready", || {
            let end = proc.ended();
            assert!(end.is_none(), "chromedriver ended: {end:?}\n{}", proc.said());
            http::get(driver, "/status").is_ok_and(|answer| answer.status() == 200)
        });
        let (width, height) = look.size;
        let mut args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            // Chromium ends with its driver, however that ends.
            "--remote-debugging-pipe",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--window-size={width},{height}"));
        args.push(format!("--lang={}", look.language));
        args.push(format!("--accept-lang={}", look.language));
        args.push(format!("--user-data-dir={}", dir.file("profile").display()));
        let options = json!({"args": args, "prefs": {"intl.accept_languages": look.language}});
        let wanted =
            json!({"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let body = json!({"capabilities": {"alwaysMatch": wanted}});
        let answer = call(driver, "POST", "/session", Some(&body)).unwrap_or_else(|e| panic!("{e}\n{}", proc.said()));
        let session = answer["sessionId"].as_str().expect("the driver names the session").to_owned();
        let browser = Self { driver, session, _proc: proc, _dir: dir };
        // The window's size has its frame in it: what counts is the page's.
        browser.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
        let scheme = if look.dark { "dark" } else { "light" };
        browser.devtools(
            "Emulation.setEmulatedMedia",
            &json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
        browser
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let path = format!("/session/{}{path}", self.session);
        call(self.driver, method, &path, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// A call of Chromium's own protocol.
    #[track_caller]
    pub fn devtools(&self, command: &str, params: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", Some(&json!({"cmd": command, "params": params})))
    }

    /// Opens an address.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", Some(&json!({ "url": url })));
    }

    /// What a script returns.
    #[track_caller]
    pub fn js(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", Some(&json!({"script": script, "args": []})))
    }

    /// The visible text of the first element that fits; `None` when there is none.
    #[track_caller]
    pub fn text(&self, css: &str) -> Option<String> {
        let text = self.js(&format!("return document.querySelector({})?.innerText ?? null", json!(css)));
        text.as_str().map(str::to_owned)
    }

    /// Waits until an element is there, or one whose text contains `text`.
    #[track_caller]
    pub fn see(&self, css: &str, text: &str) {
        let script = format!(
            "return [...document.querySelectorAll({})].some((e) => (e.innerText ?? e.textContent ?? '').includes({}))",
            json!(css),
            json!(text)
        );
        if within(crate::wait::PATIENCE, || (self.js(&script) == true).then_some(())).is_none() {
            panic!("no `{css}` with {text:?}; the page says:\n{}", self.text("body").unwrap_or_default());
        }
    }

    /// Waits until nothing fits.
    #[track_caller]
    pub fn gone(&self, css: &str) {
        until(&format!("no `{css}`"), || self.js(&format!("return !document.querySelector({})", json!(css))) == true);
    }

    /// Clicks, as a mouse does, the first element that fits and whose text contains `text`, once it is there.
    #[track_caller]
    pub fn click(&self, css: &str, text: &str) {
        let find = format!(
            "return [...document.querySelectorAll({})].find((e) => (e.innerText ?? e.value ?? '').includes({})) ?? null",
            json!(css),
            json!(text)
        );
        // The page draws itself again while it lives: an element may have gone between finding and clicking.
        until_some(&format!("`{css}` with {text:?} can be clicked"), || {
            let found = self.js(&find);
            let (_, id) = found.as_object()?.iter().next()?;
            let path = format!("/session/{}/element/{}/click", self.session, id.as_str()?);
            call(self.driver, "POST", &path, Some(&json!({}))).ok()
        });
    }

    /// Writes into the field with this label, instead of what stands there.
    #[track_caller]
    pub fn fill(&self, label: &str, text: &str) {
        let script = format!(
            "const label = [...document.querySelectorAll('label')].filter((l) => l.offsetParent !== null).find((l) => l.innerText.trim().startsWith({label}));
             const field = label ? document.getElementById(label.htmlFor) : [...document.querySelectorAll('input, textarea')].find((f) => f.ariaLabel === {label});
             if (!field) return false;
             field.focus();
             const proto = field.tagName === 'TEXTAREA' ? HTMLTextAreaElement : field.tagName === 'SELECT' ? HTMLSelectElement : HTMLInputElement;
             Object.getOwnPropertyDescriptor(proto.prototype, 'value').set.call(field, {text});
             field.dispatchEvent(new Event('input', {{ bubbles: true }}));
             field.dispatchEvent(new Event('change', {{ bubbles: true }}));
             return true",
            label = json!(label),
            text = json!(text)
        );
        until(&format!("the field `{label}`"), || self.js(&script) == true);
    }

    /// Presses keys, one after the other: characters, or names such as `Enter` in pairs of braces.
    #[track_caller]
    pub fn keys(&self, keys: &[&str]) {
        let code = |key: &str| match key {
            "Tab" => "\u{e004}".to_owned(),
            "Enter" => "\u{e007}".to_owned(),
            "Escape" => "\u{e00c}".to_owned(),
            "Down" => "\u{e015}".to_owned(),
            other => other.to_owned(),
        };
        let actions: Vec<Value> = keys
            .iter()
            .map(|key| code(key))
            .flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})])
            .collect();
        self.ask("POST", "/actions", Some(&json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]})));
    }

    /// Takes a picture of the page as it is seen, or of all of it.
    #[track_caller]
    pub fn shot(&self, file: &Path, whole: bool) {
        let mut params = json!({"format": "png"});
        if whole {
            let size = self.js("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]");
            params["captureBeyondViewport"] = true.into();
            params["clip"] = json!({"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1});
        }
        let answer = self.devtools("Page.captureScreenshot", &params);
        let png = STANDARD.decode(answer["data"].as_str().expect("a picture")).expect("in base64");
        fs::create_dir_all(file.parent().expect("a file is in a folder")).unwrap();
        fs::write(file, png).unwrap();
    }

    /// What the page complained of since it was asked last: errors, and what its policy did not let through.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.ask("POST", "/se/log", Some(&json!({"type": "browser"})));
        let log = log.as_array().cloned().unwrap_or_default();
        let severe = log.iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = call(self.driver, "DELETE", &format!("/session/{}", self.session), None);
    }
}

/// One call to the driver: its value, or what it says is wrong.
fn call(driver: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
    let text = body.map(Value::to_string).unwrap_or_default();
    let failed = |e: std::io::Error| e.to_string();
    let mut io = TcpStream::connect(driver).map_err(failed)?;
    io.set_read_timeout(Some(CALL)).map_err(failed)?;
    let length = text.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {driver}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    io.write_all((head + &text).as_bytes()).map_err(failed)?;
    let mut io = BufReader::new(io);
    let mut length = None;
    loop {
        let mut line = String::new();
        if io.read_line(&mut line).map_err(failed)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let mut answer = Vec::new();
    io.take(length.unwrap_or(u64::MAX)).read_to_end(&mut answer).map_err(failed)?;
    let answer: Value = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
    let value = answer["value"].clone();
    match value["error"].as_str() {
        Some(error) => Err(format!("{error}: {}", value["message"].as_str().unwrap_or_default())),
        None => Ok(value),
    }
}
