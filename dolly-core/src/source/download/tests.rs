//! A hub on the loopback interface, and what can go wrong with one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::*;
use crate::source::{resolve, resolve_with};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// `git hash-object` and `sha256sum` of "hello\n".
const HELLO_GIT: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
const HELLO_SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body really sent before the connection closes.
    sent: usize,
}

fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Reply { status, headers, body: body.to_vec(), sent: body.len() }
}

type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A server that answers each connection once.
struct Server {
    address: String,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (log, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (seen, ends) = (Arc::clone(&log), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Acquire) {
                    break;
                }
                // A client that hangs up early is part of the tests.
                drop(answer(stream.unwrap(), &handler, &seen));
            }
        });
        Self { address, log, stop, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(TcpStream::connect(&self.address));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn answer(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((key, value)) = line.split_once(": ") else { break };
        headers.insert(key.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { method, path, headers };
    let count = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.iter().filter(|r| (&r.method, &r.path) == (&request.method, &request.path)).count()
    };
    let reply = handler(&request, count);
    let mut out = &stream;
    write!(out, "HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status)?;
    if !reply.headers.iter().any(|(key, _)| key == "content-length") {
        write!(out, "content-length: {}\r\n", reply.body.len())?;
    }
    for (key, value) in &reply.headers {
        write!(out, "{key}: {value}\r\n")?;
    }
    out.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        out.write_all(&reply.body[..reply.sent])?;
    }
    out.flush()
}

/// The answers of a sound hub with these files; those named `*.safetensors` are large: they are
/// redirected to `cdn` (or served here).
#[derive(Clone)]
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    cdn: String,
}

impl Hub {
    fn new(names: &[&str]) -> Self {
        let content = |name: &&str| match *name {
            "config.json" | "model.safetensors" => b"hello\n".to_vec(),
            name => name.repeat(50_000).into_bytes(),
        };
        let files = names.iter().map(|name| ((*name).to_owned(), content(name))).collect();
        Self { files, cdn: String::new() }
    }

    fn serve(&self, request: &Request) -> Reply {
        let names: Vec<_> =
            self.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": names}).to_string();
        if request.path.starts_with("/api/models/org/name/revision/") {
            return reply(200, &[], listing.as_bytes());
        }
        let prefix = format!("/org/name/resolve/{COMMIT}/");
        let on_cdn = request.path.strip_prefix("/cdn/");
        let name = on_cdn.or_else(|| request.path.strip_prefix(&prefix));
        let Some((name, body)) = name.and_then(|name| self.files.get_key_value(name)) else {
            return reply(404, &[], b"no such file");
        };
        let large = name.ends_with(".safetensors");
        let (etag, size) = (etag(body, large), body.len().to_string());
        if large && on_cdn.is_none() {
            let location = format!("{}/cdn/{name}", self.cdn);
            let headers = [
                ("location", location.as_str()),
                ("x-linked-etag", &format!("\"{etag}\"")),
                ("x-linked-size", &size),
                ("x-repo-commit", COMMIT),
            ];
            return reply(302, &headers, b"");
        }
        let headers = [("etag", etag.as_str()), ("x-repo-commit", COMMIT)];
        let range = request.headers.get("range").and_then(|r| r.strip_prefix("bytes="));
        match range.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok()) {
            Some(start) if start < body.len() => {
                let range = format!("bytes {start}-{}/{size}", body.len() - 1);
                reply(206, &[headers[0], ("content-range", &range)], &body[start..])
            }
            Some(_) => reply(416, &[], b""),
            None => reply(200, &headers, body),
        }
    }
}

fn etag(body: &[u8], large: bool) -> String {
    use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
    let hash = match large {
        true => digest(&SHA256, body),
        false => {
            let mut blob = format!("blob {}\0", body.len()).into_bytes();
            blob.extend_from_slice(body);
            digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob)
        }
    };
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

const FILES: [&str; 4] = ["config.json", "model.safetensors", "notes.md", "tokenizer.json"];

fn options(cache: &Path, server: &Server) -> SourceOptions {
    SourceOptions {
        cache_dir: Some(cache.to_owned()),
        endpoint: Some(server.url()),
        token: Some("hf_secret".into()),
        ..Default::default()
    }
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[test]
fn a_whole_download_in_the_layout_of_the_hub_cache() {
    let cache = tempfile::tempdir().unwrap();
    let mut hub = Hub::new(&FILES);
    let cdn_hub = hub.clone();
    let cdn = Server::new(move |request, _| cdn_hub.serve(request));
    hub.cdn = cdn.url();
    let files = hub.files.clone();
    let server = Server::new(move |request, _| hub.serve(request));
    let options = options(cache.path(), &server);
    let mut seen = Vec::new();
    let found = resolve_with("org/name", &options, &mut |progress| {
        seen.push((progress.file.to_owned(), progress.received, progress.total));
        ControlFlow::Continue(())
    });
    let repo = cache.path().join("models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    let ModelFiles::Directory { config, tokenizer, weights, index } = found.unwrap() else {
        panic!()
    };
    assert_eq!((config, index), (snapshot.join("config.json"), None));
    assert_eq!(tokenizer, Some(snapshot.join("tokenizer.json")));
    assert_eq!(weights, [snapshot.join("model.safetensors")]);
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert_eq!(read(snapshot.join(name)), files[name]);
    }
    assert!(!snapshot.join("notes.md").exists());
    assert_eq!(read(repo.join("refs/main")), COMMIT.as_bytes());
    assert_eq!(read(repo.join("blobs").join(HELLO_GIT)), b"hello\n");
    assert_eq!(read(repo.join("blobs").join(HELLO_SHA256)), b"hello\n");
    assert_eq!(fs::read_dir(repo.join("blobs")).unwrap().count(), 3);
    assert!(seen.contains(&("model.safetensors".into(), 6, Some(6))), "{seen:?}");
    // The token goes to the hub, never to the host it redirects to.
    let token = |r: &Request| {
        r.headers.get("authorization").map(String::as_str) == Some("Bearer hf_secret")
    };
    assert!(server.requests().iter().all(token));
    assert!(!cdn.requests().is_empty());
    assert!(cdn.requests().iter().all(|r| !r.headers.contains_key("authorization")));
    // What is there is used without the network.
    let before = server.requests().len();
    resolve("org/name", &options).unwrap();
    resolve("org/name", &SourceOptions { offline: true, ..options.clone() }).unwrap();
    assert_eq!(server.requests().len(), before);
    // A revision that is not there asks; the blobs are not sent again.
    let pinned = SourceOptions { revision: Some("refs/pr/1".into()), ..options };
    resolve("org/name", &pinned).unwrap();
    assert_eq!(read(repo.join("refs/refs/pr/1")), COMMIT.as_bytes());
    let requests = server.requests();
    assert!(requests.iter().any(|r| r.path == "/api/models/org/name/revision/refs%2Fpr%2F1"));
    assert!(requests[before + 1..].iter().all(|r| r.method == "HEAD"));
}

#[test]
fn shards_are_those_of_the_index() {
    let cache = tempfile::tempdir().unwrap();
    let names = [
        "config.json",
        "model.safetensors.index.json",
        "a.safetensors",
        "b.safetensors",
        "pytorch_model.bin",
    ];
    let mut hub = Hub::new(&names);
    let index = r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}"#;
    hub.files.insert(names[1].into(), index.into());
    let server = Server::new(move |request, _| hub.serve(request));
    let found = resolve("org/name", &options(cache.path(), &server)).unwrap();
    let ModelFiles::Directory { weights, .. } = found else { panic!() };
    let weights: Vec<_> = weights.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(weights, ["a.safetensors", "b.safetensors"]);
    assert!(!server.requests().iter().any(|request| request.path.contains("pytorch")));
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let cache = tempfile::tempdir().unwrap();
    let mut hub = Hub::new(&FILES);
    let content: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    hub.files.insert("model.safetensors".into(), content.clone());
    let server = Server::new(move |request, count| {
        let mut reply = hub.serve(request);
        if request.path.starts_with("/cdn/") && count < 4 {
            reply.sent = reply.body.len().min(200_000);
        }
        reply
    });
    let found = resolve("org/name", &options(cache.path(), &server)).unwrap();
    let ModelFiles::Directory { weights, .. } = found else { panic!() };
    assert_eq!(read(&weights[0]), content);
    let on_cdn = |r: &Request| r.path.starts_with("/cdn/");
    let ranges: Vec<_> = server
        .requests()
        .into_iter()
        .filter(on_cdn)
        .map(|r| r.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges[0], None);
    assert_eq!(ranges.len(), 4);
    // Each go asks from where the last one ended.
    let starts: Vec<u64> = ranges[1..]
        .iter()
        .map(|r| r.as_ref().unwrap()[6..].trim_end_matches('-').parse().unwrap())
        .collect();
    assert!(starts.windows(2).all(|pair| pair[0] < pair[1]) && starts[0] > 0, "{starts:?}");
}

#[test]
fn a_later_call_goes_on_with_what_an_earlier_one_kept() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&FILES);
    let expected = hub.files["tokenizer.json"].clone();
    let server = Server::new(move |request, _| hub.serve(request));
    let options = options(cache.path(), &server);
    let stopped = resolve_with("org/name", &options, &mut |progress| match progress.file
        == "tokenizer.json"
    {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let repo = cache.path().join("models--org--name");
    assert!(!repo.join("refs").exists());
    let found = resolve("org/name", &options).unwrap();
    let ModelFiles::Directory { tokenizer, .. } = found else { panic!() };
    assert_eq!(read(tokenizer.unwrap()), expected);
    assert!(server.requests().iter().any(|r| r.headers.contains_key("range")));
}

/// The error of a download where the twist may answer before the sound hub does.
fn fails(twist: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Error {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&FILES);
    let server = Server::new(move |request, _| twist(request, hub.serve(request)));
    let error = resolve("org/name", &options(cache.path(), &server)).unwrap_err();
    assert!(server.requests().len() < 400);
    let text = error.to_string();
    assert!(!text.contains("hf_secret"), "{text}");
    // Nothing was made that a later call would take for the model.
    assert!(!cache.path().join("models--org--name/refs/main").exists());
    error
}

fn set(mut reply: Reply, name: &str, value: &str) -> Reply {
    reply.headers.retain(|(key, _)| key != name);
    reply.headers.push((name.into(), value.into()));
    reply
}

#[test]
fn statuses_are_told_apart() {
    for (status, word) in [
        (401, "token"),
        (403, "token"),
        (429, "too many"),
        (500, "trouble"),
        (503, "trouble"),
        (418, "418"),
    ] {
        for part in ["/api/", "/resolve/", "/cdn/"] {
            let error = fails(move |request, sound| match request.path.contains(part) {
                true => reply(status, &[], b"{}"),
                false => sound,
            });
            let text = error.to_string();
            assert!(matches!(error, Error::Download { .. }), "{text}");
            assert!(text.contains(word) && text.contains(&status.to_string()), "{text}");
        }
    }
    let error = fails(|_, _| reply(404, &[], b""));
    assert!(matches!(&error, Error::ModelNotFound { id, .. } if id == "org/name"), "{error}");
}

#[test]
fn lies_are_found_out() {
    let on = |path: &'static str, change: fn(Reply) -> Reply| {
        fails(move |request, sound| match request.path.contains(path) {
            true => change(sound),
            false => sound,
        })
    };
    let table: [(Error, &str); 15] = [
        // Sizes.
        (on("/resolve/", |r| set(r, "x-linked-size", "5")), "more than the 5 bytes"),
        (on("/resolve/", |r| set(r, "x-linked-size", "9")), "9"),
        (on("/resolve/", |r| set(r, "x-linked-size", "-1")), "no number"),
        (on("/resolve/", |r| set(r, "x-linked-size", "99999999999999999999")), "no number"),
        // Content that is not what the etag says.
        (
            on("/cdn/", |mut r| {
                r.body = b"jello\n".to_vec();
                r
            }),
            "has hash",
        ),
        // Names.
        (on("/resolve/", |r| set(r, "x-linked-etag", "../../evil")), "etag"),
        (on("/resolve/", |r| set(set(r, "etag", "\"\""), "x-linked-etag", "")), "etag"),
        (on("/resolve/", |r| set(r, "x-repo-commit", &"f".repeat(40))), "not of"),
        // Listings.
        (on("/api/", |_| reply(200, &[], b"not json")), "listing"),
        (on("/api/", |_| reply(200, &[], br#"{"sha": "../..", "siblings": []}"#)), "commit"),
        (on("/api/", |_| reply(200, &[], b"{}")), "commit"),
        (
            on("/api/", |_| {
                let big = vec![b' '; 17 << 20];
                reply(200, &[], &big)
            }),
            "over",
        ),
        // Redirects.
        (
            on("/resolve/", |mut r| {
                r.headers.clear();
                r.status = 302;
                set(r, "location", "/org/name/resolve/x")
            }),
            "redirects",
        ),
        (on("/cdn/", |_| reply(302, &[("location", "file:///etc/passwd")], b"")), "not http"),
        (on("/cdn/", |_| reply(302, &[], b"")), "nowhere"),
    ];
    for (i, (error, word)) in table.iter().enumerate() {
        let text = error.to_string();
        assert!(matches!(error, Error::Download { .. }), "{i}: {text}");
        assert!(text.contains(word), "{i}: expected {word:?} in {text}");
    }
    let loops = on("/cdn/", |_| reply(302, &[("location", "/cdn/x")], b""));
    assert!(loops.to_string().contains("redirects"), "{loops}");
}

#[test]
fn names_from_the_hub_stay_in_the_cache() {
    let listing = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|n| serde_json::json!({"rfilename": n})).collect();
        serde_json::json!({"sha": COMMIT, "siblings": names}).to_string().into_bytes()
    };
    // Names that lead out are not there at all.
    let names = listing(&["../config.json", "/config.json", "x/../config.json"]);
    let error = fails(move |request, sound| match request.path.starts_with("/api/") {
        true => reply(200, &[], &names),
        false => sound,
    });
    assert!(
        matches!(&error, Error::ModelNotFound { reason, .. } if reason.contains("config.json"))
    );
    // An index that names one is refused.
    let names = listing(&["config.json", "model.safetensors.index.json", "../a.safetensors"]);
    let index = br#"{"weight_map": {"t": "../a.safetensors"}}"#;
    let error = fails(move |request, sound| {
        if request.path.starts_with("/api/") {
            reply(200, &[], &names)
        } else if request.path.ends_with("index.json") {
            reply(200, &[("etag", "abc")], index)
        } else {
            sound
        }
    });
    assert!(
        matches!(&error, Error::Format { reason, .. } if reason.contains("weight_map")),
        "{error}"
    );
}

#[test]
fn offline_asks_nobody() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&FILES);
    let server = Server::new(move |request, _| hub.serve(request));
    let offline = SourceOptions { offline: true, ..options(cache.path(), &server) };
    let error = resolve("org/name", &offline).unwrap_err();
    assert!(
        matches!(&error, Error::ModelNotFound { reason, .. } if reason.contains("HF_HUB_OFFLINE"))
    );
    assert!(server.requests().is_empty());
    for endpoint in ["ftp://x", "", "localhost", "http://user:pass@localhost", "http://"] {
        let options =
            SourceOptions { endpoint: Some(endpoint.into()), ..options(cache.path(), &server) };
        let error = resolve("org/name", &options).unwrap_err();
        assert!(matches!(error, Error::InvalidOption { name: "endpoint", .. }), "{endpoint}");
    }
}

#[test]
fn a_locked_download_is_left_alone() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&FILES);
    let server = Server::new(move |request, _| hub.serve(request));
    let blobs = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let file = File::create(blobs.join(format!("{HELLO_GIT}.incomplete"))).unwrap();
    file.lock().unwrap();
    let error = resolve("org/name", &options(cache.path(), &server)).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
}
