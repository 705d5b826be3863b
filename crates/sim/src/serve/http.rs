//! The page and its API over HTTP.
//!
//! Nobody signs in, so nobody but this machine's own users is let in: it listens on loopback alone, and since every web page
//! that is open in a browser here could send requests too, each request must name this server as its host (a name that was made to
//! point here is refused), and one with an origin must come from this server's own page. What is kept is bounded: requests of
//! at most 4 MiB, so many connections, and what [`crate::cluster::lab`] keeps.

use super::engine::{self, Ask, Known, Request as Question, Time};
use crate::cluster::lab::LabError;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

/// The longest request.
const BODY: usize = 4 << 20;

/// So many at a time.
const CONNECTIONS: usize = 32;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(20);

/// Time passes at most so much faster than ours, and at least so much slower.
const SPEED: std::ops::RangeInclusive<f64> = 0.1..=100.0;

/// What the page may do: show itself and talk to this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It would be open to other machines.
    #[error(
        "{0} is not this machine's own address: nobody signs in here. Listen on 127.0.0.1 or [::1], and reach it from elsewhere through a tunnel (ssh -L)"
    )]
    NotLoopback(SocketAddr),
    /// The address is taken, or cannot be had.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The thread that simulates could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The scenario cannot be opened.
    #[error(transparent)]
    Scenario(#[from] LabError),
    /// The thread that simulates has ended.
    #[error("the simulation has ended unexpectedly")]
    Ended,
}

/// A simulator that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    questions: mpsc::Sender<Question>,
}

impl Server {
    /// Opens a scenario and listens; port 0 is any free one.
    ///
    /// # Errors
    /// If the scenario cannot be opened, or the address is not this machine's alone, or is taken.
    pub async fn open(address: SocketAddr, scenario: String) -> Result<Self, ServeError> {
        if !address.ip().is_loopback() {
            return Err(ServeError::NotLoopback(address));
        }
        let listener = TcpListener::bind(address).await.map_err(|e| ServeError::Listen(address, e))?;
        let address = listener.local_addr().map_err(|e| ServeError::Listen(address, e))?;
        let (questions, asked) = mpsc::channel();
        let (opened, is_open) = mpsc::channel();
        // The cluster never leaves the thread on which it was made.
        std::thread::Builder::new()
            .name("simulation".to_owned())
            .spawn(move || engine::run(&scenario, &asked, opened))
            .map_err(ServeError::Thread)?;
        is_open.recv().map_err(|_| ServeError::Ended)??;
        Ok(Self { listener, address, questions })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped.
    pub async fn serve(self) {
        let site = Arc::new(Site { address: self.address, questions: self.questions });
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else { return };
            // A connection that broke before it was accepted is that client's loss alone.
            let Ok((stream, _)) = self.listener.accept().await else { continue };
            let site = site.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    let site = site.clone();
                    async move { Ok::<_, Infallible>(site.answer(request).await) }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
                // It is its client that sees how it ended.
                drop((served, permit));
            });
        }
    }
}

struct Site {
    address: SocketAddr,
    questions: mpsc::Sender<Question>,
}

/// A refusal.
type No = (StatusCode, String);

fn bad(why: impl Into<String>) -> No {
    (StatusCode::BAD_REQUEST, why.into())
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Site {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match self.admit(&request) {
            Ok(()) => self.admitted(request).await,
            Err(no) => Err(no),
        }
        .unwrap_or_else(|(status, why)| answer(status, "text/plain; charset=utf-8", why))
    }

    /// Whether the request was meant for this server, and does not come from another site's page.
    fn admit(&self, request: &Request<Incoming>) -> Result<(), No> {
        let port = self.address.port();
        let names = ["127.0.0.1", "localhost", "[::1]"].map(|name| format!("{name}:{port}"));
        let ours = |value: &str| value == self.address.to_string() || names.iter().any(|n| n == value);
        let text = |name| request.headers().get(name).map(|v: &HeaderValue| v.to_str().unwrap_or("?"));
        if !text(header::HOST).is_some_and(ours) {
            return Err((StatusCode::MISDIRECTED_REQUEST, format!("this is http://{}/", self.address)));
        }
        if text(header::ORIGIN).is_some_and(|o| !o.strip_prefix("http://").is_some_and(ours)) {
            return Err((StatusCode::FORBIDDEN, "only this server's own page may ask".to_owned()));
        }
        Ok(())
    }

    async fn admitted(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, No> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let (html, css, js) =
            ("text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8");
        let ask = match (method, path.as_str()) {
            (Method::GET, "/") => {
                return Ok(answer(StatusCode::OK, html, include_str!("../../assets/index.html")));
            }
            (Method::GET, "/sim.css") => {
                return Ok(answer(StatusCode::OK, css, include_str!("../../assets/sim.css")));
            }
            (Method::GET, "/sim.js") => {
                return Ok(answer(StatusCode::OK, js, include_str!("../../assets/sim.js")));
            }
            (Method::GET, "/api/state") => Ask::State(known(&query)?),
            (Method::GET, "/api/guest") => {
                let sid = query.strip_prefix("sid=").unwrap_or_default().replace("%3A", ":");
                Ask::Guest(sid.parse().map_err(|e: stead_model::IdError| bad(e.to_string()))?)
            }
            (Method::GET, "/api/story") => Ask::Story,
            (Method::POST, "/api/open") => Ask::Open(body(request).await?),
            (Method::POST, "/api/act") => Ask::Act(body(request).await?),
            (Method::POST, "/api/time") => Ask::Time(time(&body(request).await?)?),
            _ => return Err((StatusCode::NOT_FOUND, "there is nothing here".to_owned())),
        };
        match self.ask(ask).await? {
            Value::String(story) => Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", story)),
            value => Ok(answer(StatusCode::OK, "application/json", value.to_string())),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Value, No> {
        let ended = || (StatusCode::INTERNAL_SERVER_ERROR, ServeError::Ended.to_string());
        let (reply, answer) = oneshot::channel();
        self.questions.send((ask, reply)).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?.map_err(bad)
    }
}

async fn body(request: Request<Incoming>) -> Result<String, No> {
    let whole = Limited::new(request.into_body(), BODY).collect();
    let whole = tokio::time::timeout(PATIENCE, whole).await.map_err(|_| bad("the request does not end"))?;
    let whole = whole.map_err(|e| bad(format!("the request cannot be read: {e}")))?;
    String::from_utf8(whole.to_bytes().to_vec()).map_err(|_| bad("the request is no text"))
}

fn known(query: &str) -> Result<Known, No> {
    let mut known = Known::default();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = match key {
            "scenario" => &mut known.scenario,
            "turns" => &mut known.turns,
            "look" => &mut known.look,
            "line" => &mut known.line,
            other => return Err(bad(format!("'{other}' is not known"))),
        };
        *place = value.parse().map_err(|_| bad(format!("{key}: '{value}' is no number")))?;
    }
    Ok(known)
}

/// `run SPEED`, `pause`, `step`, `seek SECONDS`.
fn time(text: &str) -> Result<Time, No> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite());
    match words.as_slice() {
        ["run", speed] => {
            let speed = number(speed).filter(|s| SPEED.contains(s));
            speed.map(Time::Run).ok_or_else(|| bad("the speed must be 0.1 to 100"))
        }
        ["pause"] => Ok(Time::Pause),
        ["step"] => Ok(Time::Step),
        ["seek", to] => {
            let to = number(to).and_then(|s| Duration::try_from_secs_f64(s).ok());
            to.map(Time::Seek).ok_or_else(|| bad("the time must be a number of seconds"))
        }
        _ => Err(bad(format!("'{text}': 'run SPEED', 'pause', 'step' or 'seek SECONDS'"))),
    }
}
