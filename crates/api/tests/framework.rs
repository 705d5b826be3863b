//! The framework over real connections, with raw bytes in and out: what clients see is what is checked.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use stead_access::directory::{Acl, Token, User, Who};
use stead_access::{Directory, Keyring, Stamps, TokenStore};
use stead_api::framework::{
    Access, Api, Authority, Body, Call, Cluster, ConnInfo, Endpoint, Error, From, Index, Json, Null, Of,
    Page, Place, Raw, Registry, Route, Runs, Services, Socket, Target, delete, get, post, put,
};
use stead_api_derive::Params;
use stead_model::{NodeName, Vmid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NOW: u64 = 1_700_000_000;

struct Fake {
    authority: Authority,
    dir: PathBuf,
    log: Mutex<Vec<String>>,
}

impl Services for Fake {
    fn authority(&self) -> Result<Authority, Error> {
        Ok(self.authority.clone())
    }
    fn now(&self) -> u64 {
        NOW
    }
}

#[derive(Params)]
struct Nothing;

/// Says who calls.
struct WhoAmI;
impl Endpoint<Fake> for WhoAmI {
    const ROUTE: Route = get("/whoami");
    const RUNS: Runs = Runs::Anywhere;
    const ACCESS: Access = Access::Authenticated;
    const ABOUT: &'static str = "Says who calls.";
    type Params = Nothing;
    type Answer = Json<Value>;
    async fn call(cx: &Call<Fake>, _: Nothing) -> Result<Self::Answer, Error> {
        Ok(Json(json!({"id": cx.caller.id.to_string(), "flag": true, "remote": cx.remote.is_some()})))
    }
}

/// Says much.
struct Long;
impl Endpoint<Fake> for Long {
    const ROUTE: Route = get("/nodes/{node}/long");
    const RUNS: Runs = Runs::AtNode;
    const ACCESS: Access = Access::Authenticated;
    const ABOUT: &'static str = "Says much.";
    type Params = AtNode;
    type Answer = Json<Value>;
    async fn call(_: &Call<Fake>, _: AtNode) -> Result<Self::Answer, Error> {
        Ok(Json(json!(vec!["much"; 1000])))
    }
}

/// Says as much after a change.
struct Change;
impl Endpoint<Fake> for Change {
    const ROUTE: Route = post("/long");
    const RUNS: Runs = Runs::Anywhere;
    const ACCESS: Access = Access::Authenticated;
    const ABOUT: &'static str = "Says as much after a change.";
    type Params = Nothing;
    type Answer = Json<Value>;
    async fn call(_: &Call<Fake>, _: Nothing) -> Result<Self::Answer, Error> {
        Ok(Json(json!(vec!["much"; 1000])))
    }
}

#[derive(Params)]
struct ConfigParams {
    /// The node.
    node: NodeName,
    /// The guest.
    vmid: Vmid,
    /// How many.
    #[param(min = 1, max = 64)]
    cores: Option<u32>,
    /// Start with the host.
    #[param(name = "on-boot", default = "0")]
    on_boot: bool,
    /// Some.
    tags: Vec<String>,
    /// Others.
    #[param(rest = nets)]
    more: std::collections::BTreeMap<String, String>,
}

fn nets() -> Vec<stead_api::framework::ParamSchema> {
    use stead_api::framework::params::{Kind, ParamSchema};
    vec![ParamSchema::plain("net[n]", Kind::String, "A network device.").optional()]
}

/// Changes a guest.
struct Config;
impl Endpoint<Fake> for Config {
    const ROUTE: Route = put("/nodes/{node}/qemu/{vmid}/config");
    const RUNS: Runs = Runs::AtGuest;
    const ACCESS: Access = Access::Any("/vms/{vmid}", &["VM.Config.CPU", "VM.Config.Options"]);
    const ABOUT: &'static str = "Changes a guest.";
    type Params = ConfigParams;
    type Answer = Page<Value>;
    async fn call(_: &Call<Fake>, p: ConfigParams) -> Result<Self::Answer, Error> {
        let data = json!([p.node.as_str(), p.vmid.get(), p.cores, p.on_boot, p.tags, p.more]);
        Ok(Page { data, total: 7 })
    }
}

#[derive(Params)]
struct VolumeParams {
    /// The volume.
    volume: String,
    /// Later.
    #[param(min = 1, max = 30)]
    delay: Option<u32>,
}

/// Removes a volume.
struct Remove;
impl Endpoint<Fake> for Remove {
    const ROUTE: Route = delete("/content/{volume}");
    const RUNS: Runs = Runs::Anywhere;
    const ACCESS: Access = Access::Inside("Datastore.Allocate on the storage");
    const ABOUT: &'static str = "Removes a volume.";
    type Params = VolumeParams;
    type Answer = Null;
    fn authorize(caller: &stead_api::framework::Caller, _: &VolumeParams) -> Result<(), Error> {
        caller.require("/storage/local", &["Datastore.Allocate"])
    }
    async fn call(cx: &Call<Fake>, p: VolumeParams) -> Result<Null, Error> {
        cx.services.log.lock().unwrap().push(format!("removed {} {:?}", p.volume, p.delay));
        Ok(Null)
    }
}

/// Fails.
struct Fails;
impl Endpoint<Fake> for Fails {
    const ROUTE: Route = post("/fails");
    const RUNS: Runs = Runs::Anywhere;
    const ACCESS: Access = Access::Authenticated;
    const ABOUT: &'static str = "Fails.";
    type Params = Nothing;
    type Answer = Null;
    async fn call(_: &Call<Fake>, _: Nothing) -> Result<Null, Error> {
        Err(Error::failed("VM 100 does not exist\r\nX-Evil: 1"))
    }
}

#[derive(Params)]
struct UploadParams {
    /// What it is.
    content: String,
    /// Its name.
    filename: String,
}

/// Takes a file.
struct Upload;
impl Endpoint<Fake> for Upload {
    const ROUTE: Route = post("/upload");
    const RUNS: Runs = Runs::Anywhere;
    const ACCESS: Access = Access::Authenticated;
    const ABOUT: &'static str = "Takes a file.";
    const UPLOAD: bool = true;
    type Params = UploadParams;
    type Answer = Json<Value>;
    async fn spool(cx: &Call<Fake>, before: &Raw, name: &str) -> Result<PathBuf, Error> {
        if before.first("content") == Some("refused") {
            return Err(Error::parameter("filename", format!("not '{name}'")));
        }
        std::fs::write(cx.services.dir.join("spooled"), "").unwrap();
        Ok(cx.services.dir.join("spooled"))
    }
    async fn call(cx: &Call<Fake>, p: UploadParams) -> Result<Self::Answer, Error> {
        let file = cx.take_upload().await?;
        let text = std::fs::read_to_string(file.path().unwrap()).unwrap();
        Ok(Json(json!([p.content, p.filename, file.size, text])))
    }
}

/// Takes a text of anybody.
struct Open;
impl Endpoint<Fake> for Open {
    const ROUTE: Route = post("/open");
    const RUNS: Runs = Runs::Anywhere;
    const ACCESS: Access = Access::Everyone;
    const ABOUT: &'static str = "Takes a text of anybody.";
    type Params = OpenParams;
    type Answer = Json<usize>;
    async fn call(_: &Call<Fake>, p: OpenParams) -> Result<Self::Answer, Error> {
        Ok(Json(p.text.len()))
    }
}

#[derive(Params)]
struct OpenParams {
    /// A text.
    text: String,
}

#[derive(Params)]
struct AtNode {
    /// The node.
    #[expect(dead_code, reason = "only the dispatcher reads it")]
    node: NodeName,
}

/// Echoes over a WebSocket.
struct Echo;
impl Endpoint<Fake> for Echo {
    const ROUTE: Route = get("/nodes/{node}/echo");
    const RUNS: Runs = Runs::AtNode;
    const ACCESS: Access = Access::Authenticated;
    const ABOUT: &'static str = "Echoes.";
    type Params = AtNode;
    type Answer = Socket;
    async fn call(_: &Call<Fake>, _: AtNode) -> Result<Socket, Error> {
        let (near, far) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut r, mut w) = tokio::io::split(far);
            let _ = tokio::io::copy(&mut r, &mut w).await;
        });
        Ok(Socket::screen(near))
    }
}

/// Forwards to another server of this test, which sees the connection as a peer's.
struct TwoNodes {
    me: NodeName,
    other: Mutex<Option<SocketAddr>>,
}

#[async_trait]
impl Cluster for TwoNodes {
    fn me(&self) -> &NodeName {
        &self.me
    }

    async fn place(&self, target: &Target<'_>) -> Result<Place, Error> {
        match target.node {
            Some("n1") | None => Ok(Place::Here),
            Some("n2") if self.other.lock().unwrap().is_none() => Ok(Place::Here),
            Some("n2") => Ok(Place::Node("n2".parse().unwrap())),
            Some(other) => Err(Error::failed(format!("no such cluster node '{other}'"))),
        }
    }

    async fn forward(&self, node: &NodeName, request: Request<Body>) -> Result<Response<Body>, Error> {
        let failed = |e: String| Error::new(595, format!("node '{node}' cannot be reached: {e}"));
        let to = self.other.lock().unwrap().unwrap();
        let stream = TcpStream::connect(to).await.map_err(|e| failed(e.to_string()))?;
        let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| failed(e.to_string()))?;
        tokio::spawn(conn.with_upgrades());
        let answer = send.send_request(request).await.map_err(|e| failed(e.to_string()))?;
        Ok(answer.map(|b| {
            use http_body_util::BodyExt;
            b.map_err(Into::into).boxed_unsync()
        }))
    }
}

fn authority() -> (Authority, String) {
    let mut d = Directory::default();
    d.users.insert("u@pve".into(), User { enabled: true, expire: 0 });
    d.users.insert("v@pve".into(), User { enabled: true, expire: 0 });
    d.tokens.insert("u@pve!ci".into(), Token::default());
    d.acl.push(Acl {
        path: "/vms/100".into(),
        propagate: true,
        who: Who::User("u@pve".into()),
        role: "PVEVMAdmin".into(),
    });
    d.groups.insert("none".into(), BTreeSet::new());
    let mut tokens = TokenStore::default();
    let secret = tokens.generate(&"u@pve!ci".parse().unwrap(), [1; 16]);
    let keyring = Some(Keyring::new(&[3; 32]));
    let (tokens, stamps) = (Arc::new(tokens), Arc::default());
    (Authority { directory: Arc::new(d), keyring, tokens, stamps }, secret)
}

struct Server {
    addr: SocketAddr,
    fake: Arc<Fake>,
    secret: String,
    _dir: tempfile::TempDir,
}

fn registry() -> Registry<Fake> {
    let r = Registry::default()
        .with(Of::<WhoAmI>::new())
        .with(Of::<Config>::new())
        .with(Of::<Remove>::new())
        .with(Of::<Fails>::new())
        .with(Of::<Long>::new())
        .with(Of::<Change>::new())
        .with(Of::<Upload>::new())
        .with(Of::<Open>::new())
        .with(Of::<Echo>::new());
    let children = r.children("/nodes/{node}");
    r.with(Index::new("/nodes/{node}", "name", Access::Authenticated, children))
}

async fn serve(from: From, other: Option<SocketAddr>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let (authority, secret) = authority();
    let fake = Arc::new(Fake { authority, dir: dir.path().to_owned(), log: Mutex::default() });
    let api = Arc::new(Api::new(
        registry(),
        fake.clone(),
        Arc::new(TwoNodes { me: "n1".parse().unwrap(), other: Mutex::new(other) }),
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, remote)) = listener.accept().await {
            let (api, from) = (api.clone(), from.clone());
            let service = service_fn(move |rq: Request<hyper::body::Incoming>| {
                let (api, conn) = (api.clone(), ConnInfo { remote: Some(remote), from: from.clone() });
                async move { Ok::<_, std::convert::Infallible>(api.handle(rq, conn).await) }
            });
            let conn =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(conn.with_upgrades());
        }
    });
    Server { addr, fake, secret, _dir: dir }
}

struct Answer {
    line: String,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
    fn data(&self) -> Value {
        assert_eq!(self.line, "HTTP/1.1 200 OK", "{}", self.text);
        self.json()["data"].clone()
    }
}

/// Sends bytes, reads to the end.
async fn raw(addr: SocketAddr, request: &str) -> Answer {
    let mut s = TcpStream::connect(addr).await.unwrap();
    s.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    s.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer { line: head.lines().next().unwrap().to_owned(), text: body.to_owned() }
}

impl Server {
    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let headers = if headers.is_empty() { String::new() } else { format!("{}\r\n", headers.trim()) };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let rq = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}{length}\r\n{body}"
        );
        raw(self.addr, &rq).await
    }

    fn token(&self) -> String {
        format!("Authorization: PVEAPIToken=u@pve!ci={}", self.secret)
    }
}

#[tokio::test]
async fn callers_are_known_by_ticket_token_and_connection() {
    let s = serve(From::Public, None).await;
    let none = s.ask("GET", "/api2/json/whoami", "", "").await;
    assert_eq!(none.line, "HTTP/1.1 401 No ticket");
    let by_token = s.ask("GET", "/api2/json/whoami", &s.token(), "").await;
    assert_eq!(by_token.data(), json!({"id": "u@pve!ci", "flag": 1, "remote": 1}));
    let wrong = s.ask("GET", "/api2/json/whoami", "Authorization: PVEAPIToken=u@pve!ci=guess", "").await;
    assert!(wrong.line.starts_with("HTTP/1.1 401 no such API token"));

    let keys = Keyring::new(&[3; 32]);
    let user = "u@pve".parse().unwrap();
    let ticket = keys.ticket(&user, &Stamps::default(), NOW - 7000);
    let cookie = format!("Cookie: lang=en; PVEAuthCookie={ticket}");
    assert_eq!(s.ask("GET", "/api2/json/whoami", &cookie, "").await.data()["id"], "u@pve");
    let escaped = ticket.replace(':', "%3A").replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let cookie2 = format!("Cookie: PVEAuthCookie={escaped}");
    assert_eq!(s.ask("GET", "/api2/json/whoami", &cookie2, "").await.data()["id"], "u@pve");
    let old = format!("Cookie: PVEAuthCookie={}", keys.ticket(&user, &Stamps::default(), NOW - 7200));
    assert_eq!(
        s.ask("GET", "/api2/json/whoami", &old, "").await.line,
        "HTTP/1.1 401 permission denied - ticket expired"
    );

    let unsure = s.ask("POST", "/api2/json/fails", &cookie, "").await;
    assert_eq!(unsure.line, "HTTP/1.1 401 Permission denied - invalid csrf token");
    let sure = format!("{cookie}\r\nCSRFPreventionToken: {}", keys.csrf(&user, NOW));
    assert!(s.ask("POST", "/api2/json/fails", &sure, "").await.line.starts_with("HTTP/1.1 500"));

    let forged = s.ask("GET", "/api2/json/whoami", "x-stead-auth: root@pam", "").await;
    assert_eq!(forged.line, "HTTP/1.1 401 No ticket", "only other nodes may name a caller");
    let local = serve(From::Local { trusted: true }, None).await;
    assert_eq!(local.ask("GET", "/api2/json/whoami", "", "").await.data()["id"], "root@pam");
    let stranger = serve(From::Local { trusted: false }, None).await;
    assert_eq!(stranger.ask("GET", "/api2/json/whoami", "", "").await.line, "HTTP/1.1 401 No ticket");
}

/// Sends a request that takes gzip; the answer's head and the length of its body, after that of the text in it.
async fn zipped(s: &Server, method: &str, path: &str) -> (String, usize, usize) {
    let rq = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept-Encoding: gzip, deflate\r\n{}\r\n\r\n",
        s.token()
    );
    let mut stream = TcpStream::connect(s.addr).await.unwrap();
    stream.write_all(rq.as_bytes()).await.unwrap();
    let mut answer = vec![];
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let (head, body) = (String::from_utf8(answer[..end].to_vec()).unwrap(), &answer[end..]);
    let mut text = String::new();
    if head.contains("content-encoding: gzip") {
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(body), &mut text).unwrap();
    } else {
        text = String::from_utf8(body.to_vec()).unwrap();
    }
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
    (head, text.len(), body.len())
}

#[tokio::test]
async fn what_is_long_and_read_goes_out_compressed_to_those_who_take_it() {
    let s = serve(From::Public, None).await;
    let (head, plain, wire) = zipped(&s, "GET", "/api2/json/nodes/n1/long").await;
    assert!(head.contains("vary: accept-encoding") && wire * 10 < plain, "{wire} of {plain} bytes: {head}");
    assert!(head.contains(&format!("content-length: {wire}\r\n")), "{head}");
    let (head, ..) = zipped(&s, "GET", "/api2/openapi.json").await;
    assert!(head.contains("content-encoding: gzip"), "{head}");
    for (method, path) in
        [("GET", "/api2/json/whoami"), ("POST", "/api2/json/long"), ("GET", "/api2/json/no")]
    {
        let (head, plain, wire) = zipped(&s, method, path).await;
        assert!(!head.contains("content-encoding") && plain == wire, "{method} {path}: {head}");
    }
    assert_eq!(
        s.ask("GET", "/api2/json/nodes/n1/long", &s.token(), "").await.data()[999],
        "much",
        "plain unless asked"
    );
    let front = serve(From::Public, Some(s.addr)).await;
    let (head, plain, wire) = zipped(&front, "GET", "/api2/json/nodes/n2/long").await;
    assert!(head.contains("content-encoding: gzip") && wire * 10 < plain, "passed on as it comes: {head}");
}

#[tokio::test]
async fn an_error_stands_in_the_reason_phrase_and_in_the_body() {
    let s = serve(From::Public, None).await;
    let e = s.ask("POST", "/api2/json/fails", &s.token(), "").await;
    assert_eq!(e.line, "HTTP/1.1 500 VM 100 does not exist  X-Evil: 1");
    assert_eq!(e.json()["data"], Value::Null);
    assert_eq!(e.json()["message"], "VM 100 does not exist\r\nX-Evil: 1\n");
    let e = s.ask("POST", "/api2/extjs/fails", &s.token(), "").await;
    assert_eq!(e.line, "HTTP/1.1 200 OK");
    assert_eq!((&e.json()["success"], &e.json()["status"]), (&json!(0), &json!(500)));
    let none = s.ask("PATCH", "/api2/json/no/such", "", "").await;
    assert_eq!(none.line, "HTTP/1.1 501 Method 'PATCH /no/such' not implemented");
    let method = s.ask("PUT", "/api2/json/whoami", &s.token(), "").await;
    assert_eq!(method.line, "HTTP/1.1 501 Method 'PUT /whoami' not implemented");
}

#[tokio::test]
async fn parameters_come_from_everywhere_and_errors_name_them() {
    let s = serve(From::Public, None).await;
    let path = "/api2/json/nodes/n1/qemu/100/config";
    let form = format!("{}\r\nContent-Type: application/x-www-form-urlencoded", s.token());
    let a = s
        .ask("PUT", path, &form, "cores=4&on-boot=True&tags=a%3Bb,c&net0=virtio%2Cbridge=vmbr0&vmid=100")
        .await;
    let expected = json!(["n1", 100, 4, 1, ["a", "b", "c"], {"net0": "virtio,bridge=vmbr0"}]);
    assert_eq!(a.data(), expected);
    assert_eq!(a.json()["total"], 7);
    let js = format!("{}\r\nContent-Type: application/json", s.token());
    let body = r#"{"cores": 4, "on-boot": true, "tags": ["a", "b", "c"], "net0": "virtio,bridge=vmbr0", "vmid": "100"}"#;
    assert_eq!(s.ask("PUT", path, &js, body).await.data(), expected);
    let multipart = format!("{}\r\nContent-Type: multipart/form-data; boundary=B", s.token());
    let body = "--B\r\nContent-Disposition: form-data; name=\"cores\"\r\n\r\n2\r\n--B--\r\n";
    assert_eq!(s.ask("PUT", path, &multipart, body).await.data()[2], 2);
    assert_eq!(s.ask("PUT", path, &s.token(), "").await.data()[2], Value::Null, "no body at all");

    let bad = s.ask("PUT", path, &form, "cores=0&on-boot=maybe&colour=red&vmid=101&net=1").await;
    assert_eq!(bad.line, "HTTP/1.1 400 Parameter verification failed.");
    let errors = bad.json()["errors"].clone();
    assert_eq!(errors["cores"], "value must have a minimum value of 1");
    assert_eq!(errors["on-boot"], "type check ('boolean') failed - got 'maybe'");
    assert_eq!(
        errors["colour"],
        "property is not defined in schema and the schema does not allow additional properties"
    );
    assert_eq!(errors["vmid"], "more than one value was given, and they differ");
    assert!(errors["net"].is_string(), "a family without a number is no parameter");
}

#[tokio::test]
async fn permission_is_checked_before_anything_else() {
    let s = serve(From::Public, None).await;
    let e = s.ask("PUT", "/api2/json/nodes/n1/qemu/101/config", &s.token(), "").await;
    assert_eq!(e.line, "HTTP/1.1 403 Permission check failed (/vms/101, VM.Config.CPU|VM.Config.Options)");
    let e = s.ask("DELETE", "/api2/json/content/local:iso/a.iso", &s.token(), "").await;
    assert_eq!(e.line, "HTTP/1.1 403 Permission check failed (/storage/local, Datastore.Allocate)");
    for h in registry().iter().filter(|h| h.meta().route.path.contains("config")) {
        let (caller, mut raw) = (caller("v@pve"), Raw::default());
        raw.add("vmid", "100");
        raw.add("node", "n1");
        assert_eq!(h.authorize(&caller, raw).unwrap_err().status, 403);
    }
}

fn caller(id: &str) -> stead_api::framework::Caller {
    stead_api::framework::Caller { id: id.parse().unwrap(), directory: authority().0.directory, now: NOW }
}

#[tokio::test]
async fn a_volume_captures_the_tail_of_the_path() {
    let s = serve(From::Local { trusted: true }, None).await;
    for path in ["content/local:iso/a%20b.iso?delay=3", "content/local%3Aiso%2Fa%20b.iso?delay=3"] {
        assert_eq!(s.ask("DELETE", &format!("/api2/json/{path}"), "", "").await.data(), Value::Null);
    }
    let body = s.ask("DELETE", "/api2/json/content/x", "", "delay=5").await;
    assert_eq!(body.data(), Value::Null, "DELETE takes a body too");
    let log = s.fake.log.lock().unwrap().clone();
    let one = "removed local:iso/a b.iso Some(3)";
    assert_eq!(log, [one, one, "removed x Some(5)"]);
}

#[tokio::test]
async fn an_index_lists_its_children() {
    let s = serve(From::Local { trusted: true }, None).await;
    assert_eq!(
        s.ask("GET", "/api2/json/nodes/n1", "", "").await.data(),
        json!([{"name": "echo"}, {"name": "long"}, {"name": "qemu"}])
    );
}

#[tokio::test]
async fn an_uploaded_file_is_spooled_and_removed_unless_kept() {
    let s = serve(From::Local { trusted: true }, None).await;
    let file =
        "--B\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"a.iso\"\r\n\r\nhello\r\n";
    let field = "--B\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\niso\r\n";
    let headers = "Content-Type: multipart/form-data; boundary=B";
    for body in [format!("{file}{field}--B--\r\n"), format!("{field}{file}--B--\r\n")] {
        let a = s.ask("POST", "/api2/json/upload", headers, &body).await;
        assert_eq!(a.data(), json!(["iso", "a.iso", 5, "hello"]));
        assert!(!s.fake.dir.join("spooled").exists());
    }
    let cut = s.ask("POST", "/api2/json/upload", headers, file).await;
    assert!(cut.line.starts_with("HTTP/1.1 400"), "{}", cut.line);
    assert!(!s.fake.dir.join("spooled").exists());
}

#[tokio::test]
async fn a_refused_upload_leaves_nothing_and_is_refused_before_its_file_is_read() {
    let s = serve(From::Local { trusted: true }, None).await;
    let headers = "Content-Type: multipart/form-data; boundary=B";
    let left = || s.fake.dir.join("spooled").exists();
    let not_parts = s.ask("POST", "/api2/json/upload", "Content-Type: text/plain", "x").await;
    assert!(not_parts.line.starts_with("HTTP/1.1 400"), "{}", not_parts.line);
    assert!(!left());
    // Of a file of a gigabyte the beginning alone is sent; the answer does not wait for the rest for long.
    let begin = "--B\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\nrefused\r\n\
        --B\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"a.iso\"\r\n\r\nhello";
    let rq = format!(
        "POST /api2/json/upload HTTP/1.1\r\nHost: x\r\n{headers}\r\nContent-Length: 1073741824\r\n\r\n{begin}"
    );
    let refused = raw(s.addr, &rq).await;
    assert_eq!(refused.json()["errors"]["filename"], "not 'a.iso'");
    assert!(!left());
    let stranger = serve(From::Public, None).await;
    let rq = rq.replace("refused", "iso");
    assert_eq!(raw(stranger.addr, &rq).await.line, "HTTP/1.1 401 No ticket");
    assert!(!stranger.fake.dir.join("spooled").exists());
}

#[tokio::test]
async fn parameters_have_one_budget_however_they_are_sent() {
    let s = serve(From::Public, None).await;
    let parts = "Content-Type: multipart/form-data; boundary=B";
    let part = |size: usize| {
        format!("--B\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\n{}\r\n", "x".repeat(size))
    };
    let parts_of = |n: usize, size: usize| part(size).repeat(n) + "--B--\r\n";
    let known = format!("{}\r\n{parts}", s.token());
    let ask = async |headers: &str, body: &str| s.ask("POST", "/api2/json/open", headers, body).await;
    assert_eq!(ask(&known, &parts_of(1, 1 << 20)).await.data(), 1 << 20);
    assert_eq!(ask(parts, &parts_of(1, 60 << 10)).await.data(), 60 << 10);
    let form = |n: usize| vec!["text=x"; n].join("&");
    assert_eq!(ask(&s.token(), &form(1024)).await.data(), 1);
    for (who, body) in [
        (known.as_str(), parts_of(3, 1 << 20)),
        (known.as_str(), parts_of(1025, 1)),
        (known.as_str(), "x".repeat(3 << 20)),
        (parts, parts_of(2, 40 << 10)),
        ("", format!("text={}", "x".repeat(70 << 10))),
        ("", form(1025)),
    ] {
        let refused = ask(who, &body).await;
        assert!(refused.line.starts_with("HTTP/1.1 413 "), "{} bytes: {}", body.len(), refused.line);
    }
}

#[tokio::test]
async fn localhost_is_the_node_that_is_asked() {
    let n2 = serve(From::Peer { node: "n1".parse().unwrap() }, None).await;
    let s = serve(From::Public, Some(n2.addr)).await;
    let a = s.ask("PUT", "/api2/json/nodes/localhost/qemu/100/config?cores=3", &s.token(), "").await;
    assert_eq!((&a.data()[0], &a.data()[2]), (&json!("n1"), &json!(3)));
    let index = s.ask("GET", "/api2/extjs/nodes/localhost", &s.token(), "").await;
    assert_eq!(index.json()["success"], 1, "{}", index.text);
    let other = s.ask("GET", "/api2/json/nodes/localhosts/long", &s.token(), "").await;
    assert_eq!(other.line, "HTTP/1.1 500 no such cluster node 'localhosts'");
}

#[tokio::test]
async fn an_index_refuses_a_path_that_names_nothing() {
    let s = serve(From::Local { trusted: true }, None).await;
    let wrong = s.ask("GET", "/api2/json/nodes/n%20%20", "", "").await;
    assert_eq!(wrong.line, "HTTP/1.1 400 Parameter verification failed.");
    assert!(wrong.json()["errors"]["node"].is_string(), "{}", wrong.text);
}

#[tokio::test]
async fn a_request_for_another_node_is_forwarded_with_its_caller() {
    let n2 = serve(From::Peer { node: "n1".parse().unwrap() }, None).await;
    let n1 = serve(From::Public, Some(n2.addr)).await;
    let a = n1.ask("PUT", "/api2/json/nodes/n2/qemu/100/config?cores=3", &n1.token(), "").await;
    assert_eq!(a.data()[2], 3);
    let e = n1.ask("PUT", "/api2/json/nodes/n2/qemu/101/config", &n1.token(), "").await;
    assert!(
        e.line.starts_with("HTTP/1.1 403 Permission check failed (/vms/101"),
        "the phrase survives: {}",
        e.line
    );
    let e = n1.ask("PUT", "/api2/json/nodes/n9/qemu/100/config", &n1.token(), "").await;
    assert_eq!(e.line, "HTTP/1.1 500 no such cluster node 'n9'");
    // A circle of nodes that each take the other for the right one ends.
    let circle = serve(From::Peer { node: "n2".parse().unwrap() }, None).await;
    let rq = |hops: u32| format!("x-stead-auth: root@pam\r\nx-stead-hops: {hops}");
    assert_eq!(circle.ask("PUT", "/api2/json/nodes/n1/qemu/100/config", &rq(2), "").await.data()[0], "n1");
    let round = serve(From::Peer { node: "n2".parse().unwrap() }, Some(circle.addr)).await;
    let e = round.ask("PUT", "/api2/json/nodes/n2/qemu/100/config", &rq(2), "").await;
    assert!(e.line.contains("handed on too often"), "{}", e.line);
}

#[tokio::test]
async fn a_websocket_carries_bytes_both_ways() {
    let n2 = serve(From::Peer { node: "n1".parse().unwrap() }, None).await;
    let s = serve(From::Public, Some(n2.addr)).await;
    echo_over(&s, "n1").await;
    echo_over(&s, "n2").await;
    let plain = s.ask("GET", "/api2/json/nodes/n1/echo", &s.token(), "").await;
    assert_eq!(plain.line, "HTTP/1.1 400 a WebSocket handshake was expected");
}

#[tokio::test]
async fn a_page_of_another_site_opens_no_websocket() {
    let n2 = serve(From::Peer { node: "n1".parse().unwrap() }, None).await;
    let s = serve(From::Public, Some(n2.addr)).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==";
    for node in ["n1", "n2"] {
        let ask = async |origin: &str| {
            let headers = format!("{}\r\n{upgrade}\r\nOrigin: {origin}", s.token());
            let rq =
                format!("GET /api2/json/nodes/{node}/echo HTTP/1.1\r\nHost: Node:8006\r\n{headers}\r\n\r\n");
            let mut stream = TcpStream::connect(s.addr).await.unwrap();
            stream.write_all(rq.as_bytes()).await.unwrap();
            let mut line = [0; 12];
            stream.read_exact(&mut line).await.unwrap();
            String::from_utf8(line.to_vec()).unwrap()
        };
        for foreign in ["https://evil.example", "null", "https://node", "https://node:8007", "Node:8006"] {
            assert_eq!(ask(foreign).await, "HTTP/1.1 403", "{node} {foreign}");
        }
        assert_eq!(ask("https://node:8006").await, "HTTP/1.1 101", "{node}");
    }
}

async fn echo_over(s: &Server, node: &str) {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let stream = TcpStream::connect(s.addr).await.unwrap();
    let mut rq = format!("ws://x/api2/json/nodes/{node}/echo").into_client_request().unwrap();
    let token = format!("PVEAPIToken=u@pve!ci={}", s.secret);
    rq.headers_mut().insert("authorization", token.parse().unwrap());
    rq.headers_mut().insert("sec-websocket-protocol", "binary".parse().unwrap());
    let (mut ws, answer) = tokio_tungstenite::client_async(rq, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "binary");
    ws.send(Message::Binary(Bytes::from_static(b"hello"))).await.unwrap();
    assert_eq!(ws.next().await.unwrap().unwrap().into_data(), Bytes::from_static(b"hello"));
}

#[tokio::test]
async fn the_document_describes_every_endpoint() {
    let s = serve(From::Public, None).await;
    let doc = s.ask("GET", "/api2/openapi.json", "", "").await;
    let doc: Value = serde_json::from_str(&doc.text).unwrap();
    assert_eq!(doc["openapi"], "3.1.0");
    let op = &doc["paths"]["/nodes/{node}/qemu/{vmid}/config"]["put"];
    assert_eq!(op["operationId"], "putNodesNodeQemuVmidConfig");
    let schema = &op["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(
        schema["properties"]["cores"],
        json!({"type": "integer", "minimum": 1, "maximum": 64, "description": "How many."})
    );
    assert!(schema["properties"]["net[n]"].is_object());
    assert_eq!(doc["paths"].as_object().unwrap().len(), 10);
}
