//! The simulator's server, by real requests.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use stead_sim::serve::{ServeError, Server};

/// However slow this machine is: what has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Site {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Site {
    fn open(scenario: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let server = runtime.block_on(Server::open(any, scenario.to_owned())).unwrap();
        let address = server.address();
        runtime.spawn(server.serve());
        Self { address, _runtime: runtime }
    }

    /// Status, head and body of what is answered to these lines and this body.
    fn raw(&self, first: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = format!("{first} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(k, v)| text.push_str(&format!("{k}: {v}\r\n")));
        // A refusal may come before all is sent.
        let sent = stream.write_all(format!("{text}\r\n{body}").as_bytes());
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            panic!("no answer: {sent:?} {read:?}")
        };
        let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    fn host(&self) -> String {
        self.address.to_string()
    }

    fn get(&self, path: &str) -> Value {
        let (status, _, body) = self.raw(&format!("GET {path}"), &[("host", &self.host())], "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or(Value::String(body))
    }

    fn post(&self, path: &str, body: &str) -> (u16, String) {
        let (status, _, answer) = self.raw(&format!("POST {path}"), &[("host", &self.host())], body);
        (status, answer)
    }

    fn done(&self, path: &str, body: &str) {
        assert_eq!(self.post(path, body).0, 200, "{path} {body}: {}", self.post(path, body).1);
    }

    /// Sets the time and waits until it has come.
    fn seek(&self, to: f64) -> Value {
        self.done("/api/time", &format!("seek {to}"));
        let began = Instant::now();
        loop {
            let state = self.get("/api/state");
            if state["seek"].is_null() {
                assert_eq!(state["summary"]["now"].as_f64(), Some(to));
                return state;
            }
            assert!(began.elapsed() < PATIENCE, "{state}");
        }
    }
}

fn of<'v>(state: &'v Value, kind: &str, name: &str) -> &'v Value {
    state[kind].as_array().unwrap().iter().find(|row| row[1] == name).unwrap()
}

#[test]
fn a_plug_is_pulled_over_http_and_time_turned_back() {
    let site = Site::open("nodes 3\nguests 6\nseed 1\n");
    let before = site.seek(20.0);
    assert_eq!(before["size"], serde_json::json!([3, 6]));
    assert_eq!(of(&before, "guests", "vm:101")[3], "runs");
    site.done("/api/act", "power n2 off");
    let after = site.seek(45.0);
    assert_eq!(of(&after, "nodes", "n2")[2], "lost");
    let guest = of(&after, "guests", "vm:101");
    assert!(guest[3] == "runs" && guest[2] != 1, "{guest}");
    let tale = site.get("/api/guest?sid=vm%3A101");
    assert!(tale["reason"].as_str().unwrap().contains("node 'n2' is lost"), "{tale}");
    assert_eq!(tale["outage"]["count"], 1);
    // What has not changed is not told again.
    let known = |s: &Value| {
        format!(
            "/api/state?scenario={}&turns={}&look={}&line={}",
            s["scenario"], s["turns"], s["look"], s["line"]
        )
    };
    let again = site.get(&known(&after));
    assert_eq!((again["nodes"].as_array().unwrap().len(), again["lines"].as_array().unwrap().len()), (0, 0));
    let back = site.seek(20.0);
    assert_eq!(back["guests"], before["guests"]);
    assert_eq!(back["acts"].as_array().unwrap().len(), 1);
    // The saved story, opened again, leads to the same.
    let Value::String(story) = site.get("/api/story") else { panic!("the story is text") };
    assert!(story.contains("\nat 20 power n2 off\n"), "{story}");
    site.done("/api/open", &story);
    let opened = site.seek(45.0);
    assert_eq!((&opened["guests"], &opened["nodes"]), (&after["guests"], &after["nodes"]));
}

#[test]
fn time_runs_and_stops() {
    let site = Site::open("nodes 3\nguests 3\n");
    site.done("/api/time", "run 100");
    let began = Instant::now();
    while site.get("/api/state")["summary"]["now"].as_f64().unwrap() < 5.0 {
        assert!(began.elapsed() < PATIENCE);
    }
    site.done("/api/time", "pause");
    let now = |s: &Value| s["summary"]["now"].as_f64().unwrap();
    let (one, two) = (site.get("/api/state"), site.get("/api/state"));
    assert_eq!((now(&one), &one["speed"]), (now(&two), &Value::Null));
    site.done("/api/act", "power n1 off");
    site.done("/api/time", "step");
    assert!(now(&site.get("/api/state")) > now(&two));
}

#[test]
fn nobody_else_is_let_in() {
    let site = Site::open("nodes 3\nguests 3\n");
    let host = site.host();
    let port = site.address.port();
    let status = |first: &str, headers: &[(&str, &str)]| site.raw(first, headers, "pause").0;
    assert_eq!(status("POST /api/time", &[("host", &format!("localhost:{port}"))]), 200);
    assert_eq!(status("POST /api/time", &[("host", &host), ("origin", &format!("http://{host}"))]), 200);
    // A name that was made to point here, another port, none.
    for other in ["evil.example", &format!("evil.example:{port}"), "127.0.0.1:1", "127.0.0.1"] {
        assert_eq!(status("POST /api/time", &[("host", other)]), 421, "{other}");
    }
    assert_eq!(status("POST /api/time", &[]), 421);
    // Another site's page.
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1", &format!("https://{host}")] {
        assert_eq!(status("POST /api/time", &[("host", &host), ("origin", origin)]), 403, "{origin}");
        assert_eq!(status("GET /api/state", &[("host", &host), ("origin", origin)]), 403, "{origin}");
    }
    let (status, head, page) = site.raw("GET /", &[("host", &host)], "");
    assert!(status == 200 && page.contains("<h1>Stead"), "{page}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for path in ["/sim.js", "/sim.css"] {
        assert_eq!(site.raw(&format!("GET {path}"), &[("host", &host)], "").0, 200);
    }
    assert_eq!(site.raw("GET /etc/passwd", &[("host", &host)], "").0, 404);
}

#[test]
fn it_listens_on_loopback_alone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let open = |address: &str, scenario: &str| {
        runtime.block_on(Server::open(address.parse().unwrap(), scenario.to_owned())).unwrap_err()
    };
    assert!(matches!(open("0.0.0.0:0", "nodes 3\n"), ServeError::NotLoopback(_)));
    assert!(matches!(open("127.0.0.1:0", "knots 3\n"), ServeError::Scenario(_)));
}

#[test]
fn what_is_wrong_is_said() {
    let site = Site::open("nodes 3\nguests 3\n");
    let said = |path: &str, body: &str| {
        let (status, answer) = site.post(path, body);
        assert_eq!(status, 400, "{answer}");
        answer
    };
    assert_eq!(said("/api/act", "power n9 off"), "the cluster has no node 'n9'");
    assert!(said("/api/time", "run 1e9").contains("0.1 to 100"));
    assert!(said("/api/time", "seek -1").contains("number of seconds"));
    assert!(said("/api/open", "nodes many\n").contains("line 1"));
    assert!(said("/api/open", &"#".repeat((4 << 20) + 1)).contains("cannot be read"));
    let (status, ..) = site.raw("GET /api/guest?sid=vm:999", &[("host", &site.host())], "");
    assert_eq!(status, 400);
    // None of it has changed anything.
    assert_eq!(site.get("/api/state")["acts"].as_array().unwrap().len(), 0);
}
