//! The hub's addresses and answers.

use std::io::Read;
use std::time::Duration;

use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::super::cache::is_commit;
use crate::error::{Error, Result, try_vec};

/// Most redirects from one address.
const MAX_HOPS: usize = 8;

/// A hub, one model on it, and the secret for its host.
pub(super) struct Hub<'a> {
    agent: Agent,
    endpoint: &'a str,
    origin: Origin,
    id: &'a str,
    token: Option<&'a str>,
}

/// Scheme, host and port: a secret never leaves for another.
#[derive(PartialEq, Eq)]
struct Origin {
    scheme: String,
    authority: String,
}

/// What the hub says of a file before it sends it.
#[derive(Debug)]
pub(super) struct Remote {
    /// The file's name among the blobs.
    pub etag: String,
    pub size: Option<u64>,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
        let authority = uri.authority().map(|authority| authority.as_str())?;
        let plain = !authority.is_empty() && !authority.contains('@');
        plain.then(|| Self {
            scheme: scheme.to_ascii_lowercase(),
            authority: authority.to_ascii_lowercase(),
        })
    }
}

impl<'a> Hub<'a> {
    pub fn new(endpoint: &'a str, id: &'a str, token: Option<&'a str>) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/');
        let origin = endpoint.parse().ok().and_then(|uri| Origin::of(&uri));
        let allowed = "an address that starts with https:// or http://";
        let origin = origin.ok_or_else(|| Error::option("endpoint", endpoint, allowed))?;
        if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::option("token", "(hidden)", "visible ASCII characters"));
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::WebPki)
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here, where it is known who may have the token.
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("dolly-core/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build()
            .new_agent();
        Ok(Self { agent, endpoint, origin, id, token })
    }

    /// The model's name.
    pub fn id(&self) -> &str {
        self.id
    }

    pub fn api_url(&self, revision: &str) -> String {
        // A branch such as `refs/pr/1` is one component here.
        let revision = escape(revision).replace('/', "%2F");
        format!("{}/api/models/{}/revision/{revision}", self.endpoint, self.id)
    }

    pub fn file_url(&self, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.id, escape(name))
    }

    /// The whole body at `url`, at most `limit` bytes.
    pub fn read_small(&self, url: &str, limit: u64) -> Result<Vec<u8>> {
        let response = self.get(url, None)?;
        if response.status() != 200 {
            return Err(self.refused(url, response.status().as_u16()));
        }
        let mut bytes = try_vec(0, "a listing")?;
        let mut body = response.into_body().into_reader().take(limit + 1);
        body.read_to_end(&mut bytes).map_err(|error| failed(url, error))?;
        match bytes.len() as u64 > limit {
            true => Err(failed(url, format!("over {limit} bytes"))),
            false => Ok(bytes),
        }
    }

    /// Name and size of the blob at `url`, which must be of `commit`.
    ///
    /// Large files are redirected to another host; the hub's own answer names them in
    /// `X-Linked-Etag` and `X-Linked-Size`.
    pub fn remote(&self, url: &str, commit: &str) -> Result<Remote> {
        let mut uri = parse(url, url)?;
        for _ in 0..MAX_HOPS {
            let response = self.send(url, &uri, true, None)?;
            let headers = response.headers();
            if let Some(found) = text(headers, "x-repo-commit").filter(|found| *found != commit) {
                let found = if is_commit(found) { found } else { "no commit" };
                return Err(failed(url, format!("is of {found}, not of {commit}")));
            }
            let linked = text(headers, "x-linked-etag");
            let redirect = response.status().is_redirection();
            if redirect && linked.is_none() {
                uri = self.next(url, &uri, headers)?;
                continue;
            }
            if !redirect && response.status() != 200 {
                return Err(self.refused(url, response.status().as_u16()));
            }
            let etag = linked.or_else(|| text(headers, "etag")).and_then(plain_etag);
            let etag = etag.ok_or_else(|| failed(url, "no etag that can name a file"))?;
            let own = || (!redirect).then(|| text(headers, "content-length")).flatten();
            let size = text(headers, "x-linked-size").or_else(own);
            let size = match size.map(str::parse) {
                None => None,
                Some(Ok(size)) => Some(size),
                Some(Err(_)) => return Err(failed(url, "a size that is no number")),
            };
            return Ok(Remote { etag, size });
        }
        Err(failed(url, format!("over {MAX_HOPS} redirects")))
    }

    /// The answer at the end of the redirects from `url`, from byte `start` on if one is given.
    pub fn get(&self, url: &str, start: Option<u64>) -> Result<Response<Body>> {
        let mut uri = parse(url, url)?;
        for _ in 0..MAX_HOPS {
            let response = self.send(url, &uri, false, start)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            uri = self.next(url, &uri, response.headers())?;
        }
        Err(failed(url, format!("over {MAX_HOPS} redirects")))
    }

    /// One request; the token goes to the hub's own origin only.
    fn send(&self, url: &str, uri: &Uri, head: bool, start: Option<u64>) -> Result<Response<Body>> {
        let mut request = if head { self.agent.head(uri) } else { self.agent.get(uri) };
        // Sizes and ranges are those of the file itself.
        request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(start) = start {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        if let Some(token) = self.token.filter(|_| Origin::of(uri).as_ref() == Some(&self.origin)) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call().map_err(|error| failed(url, error))
    }

    /// Where a redirect leads: an address of its own or a path on the same host.
    fn next(&self, url: &str, from: &Uri, headers: &HeaderMap) -> Result<Uri> {
        let to = text(headers, "location").ok_or_else(|| failed(url, "a redirect to nowhere"))?;
        let absolute = match to.strip_prefix('/').filter(|rest| !rest.starts_with('/')) {
            Some(_) => match Origin::of(from) {
                Some(Origin { scheme, authority }) => format!("{scheme}://{authority}{to}"),
                None => return Err(failed(url, "a redirect from nowhere")),
            },
            None => to.to_owned(),
        };
        let uri = parse(url, &absolute)?;
        match (self.origin.scheme.as_str(), uri.scheme_str()) {
            ("https", Some("http")) => Err(failed(url, "a redirect from https to http")),
            _ => Ok(uri),
        }
    }

    /// The error for a status that is no success.
    pub fn refused(&self, url: &str, status: u16) -> Error {
        let reason = match (status, self.token) {
            (401 | 403, None) => "the model does not exist, or is gated or private: set HF_TOKEN",
            (401 | 403, Some(_)) => "the model does not exist, or this token may not read it",
            (404, _) => {
                let reason = format!("the hub has nothing at {url}: check name and revision");
                return Error::ModelNotFound { id: self.id.into(), reason };
            }
            (429, _) => "too many requests: wait, or set HF_TOKEN",
            (500.., _) => "the hub has trouble: try again; what was received is kept",
            _ => "an answer this library does not know",
        };
        failed(url, format!("status {status}: {reason}"))
    }
}

/// An error that names the hub's address, never a redirected one: those carry signatures.
pub(super) fn failed(url: &str, reason: impl std::fmt::Display) -> Error {
    Error::Download { url: url.to_owned(), reason: reason.to_string() }
}

fn parse(url: &str, address: &str) -> Result<Uri> {
    let uri: Option<Uri> = address.parse().ok().filter(|uri| Origin::of(uri).is_some());
    uri.ok_or_else(|| failed(url, "leads to an address that is not http or https"))
}

pub(super) fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let header = if name == "location" { headers.get(LOCATION) } else { headers.get(name) };
    header.and_then(|value| value.to_str().ok()).map(str::trim)
}

/// An etag without quotes and weakness mark, if it can be a file's name.
fn plain_etag(etag: &str) -> Option<String> {
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let fits = (1..=128).contains(&etag.len()) && etag.bytes().all(plain);
    fits.then(|| etag.to_owned())
}

/// Percent-encodes everything but unreserved characters and `/` (RFC 3986).
fn escape(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
