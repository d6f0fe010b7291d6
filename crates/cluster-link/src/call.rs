//! One stream on a connection of its own: hyper's HTTP/2 around tonic's framing, for both sides.

use crate::Tls;
use crate::hello::Refusal;
use crate::limits::{
    CONNECT, FRAME, HEADERS, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, LINGER, MESSAGE_MAX, SEND_BUFFER,
    STREAMS, USER_TIMEOUT, WINDOW,
};
use crate::sender::{Outbound, Outlet, outlet};
use crate::tls::{Shown, advice, advice_in};
use crate::wire::{Frame, Frames, Kind, Refused, frame, shown};
use hyper::body::Incoming;
use hyper::client::conn::http2 as client;
use hyper::http::uri::PathAndQuery;
use hyper::http::{Request, Response, Uri};
use hyper::rt::Executor;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::server::StreamingService;
use tonic::{Status, Streaming};

/// A stream to and from another node. Its connection is closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) outlet: Outlet,
    pub(crate) inbound: Streaming<Frame>,
    pub(crate) connection: DropGuard,
    /// What the other side has shown, by TLS.
    pub(crate) shown: Option<Shown>,
}

/// Why nothing more comes of a stream, before there is a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unheard {
    #[error("the other side refuses this node, saying: {text}")]
    Refused {
        text: String,
        /// It stays so until somebody changes a configuration.
        lasts: bool,
    },
    #[error("the stream ended: {0}")]
    Lost(String),
    #[error("the other side says something else than the handshake asks for: is it of a later version?")]
    Else,
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no answer within {CONNECT:?} to an attempt to connect")]
    Silent,
    #[error("TLS: {}", advised(.0.to_string(), .0))]
    Tls(io::Error),
    #[error(
        "no certificate can be for {0:?}: write the address as the certificates have it, or give the name \
         that all of them have"
    )]
    Name(String),
    #[error("HTTP/2: {}", advised(.0.to_string(), .0))]
    Http(hyper::Error),
    #[error("gRPC: {0}")]
    Call(String),
}

/// hyper's own tasks end with the connection, whatever they wait for.
#[derive(Debug, Clone)]
struct Spawn {
    tasks: TaskTracker,
    connection: CancellationToken,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Spawn {
    fn execute(&self, task: F) {
        let connection = self.connection.clone();
        self.tasks.spawn(async move {
            connection.run_until_cancelled(task).await;
        });
    }
}

// === impl Call ===

impl Call {
    pub(crate) fn say(&self, what: frame::What) {
        if let Some(first) = &self.outlet.first {
            let _ = first.send(frame(what)); // the connection has ended: reading says so
        }
    }

    /// The handshake's next frame.
    ///
    /// Not cancellation-safe: a frame may be lost.
    pub(crate) async fn hear(&mut self) -> Result<frame::What, Unheard> {
        match self.inbound.message().await {
            Ok(Some(Frame { what: Some(frame::What::Refused(refused)) })) => {
                Err(Unheard::Refused { text: shown(&refused.text), lasts: refused.lasts })
            }
            Ok(Some(Frame { what: Some(what) })) => Ok(what),
            Ok(Some(Frame { what: None })) => Err(Unheard::Else),
            Ok(None) => Err(Unheard::Lost("the other side closed it".into())),
            Err(status) => Err(Unheard::Lost(told(&status))),
        }
    }

    /// Says why the other side is refused, and waits a little until it has heard it.
    pub(crate) async fn refuse(self, why: Refusal) {
        self.end(frame::What::Refused(Refused { text: why.to_string(), lasts: !why.is_passing() })).await;
    }

    /// Says the last thing, and waits a little until the other side has heard it.
    pub(crate) async fn end(mut self, what: frame::What) {
        self.say(what);
        let heard = async { while let Ok(Some(_)) = self.inbound.message().await {} };
        let _ = timeout(LINGER, heard).await; // long enough
    }
}

/// A status with what caused it, in one line.
pub(crate) fn told(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        source = error.source();
    }
    if text.is_empty() { status.code().to_string() } else { advised(shown(&text), status) }
}

/// `text` and, if TLS is what caused `error`, what to do about it.
pub(crate) fn advised(text: String, error: &(dyn std::error::Error + 'static)) -> String {
    match advice(error).or_else(|| advice_in(&text)) {
        Some(advice) => format!("{text}: {advice}"),
        None => text,
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket2::SockRef::from(socket).set_tcp_user_timeout(Some(USER_TIMEOUT))
}

// === the side that dials ===

/// Opens a stream at `address`, which `host` stands for. Its tasks are of `tasks`, and end with `parent`.
///
/// Cancellation-safe: dropped, nothing of it remains.
pub(crate) async fn open(
    tasks: &TaskTracker,
    parent: &CancellationToken,
    tls: Option<&Tls>,
    kind: Kind,
    (host, address): (&str, SocketAddr),
) -> Result<Call, OpenError> {
    let socket = match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(socket) => socket.map_err(OpenError::Connect)?,
        Err(_) => return Err(OpenError::Silent),
    };
    tune(&socket).map_err(OpenError::Connect)?;
    let connection = parent.child_token();
    let guard = connection.clone().drop_guard();
    let spawn = Spawn { tasks: tasks.clone(), connection };
    let Some(tls) = tls else { return open_on(socket, spawn, (guard, None), kind).await };
    let name = tls.name(host).ok_or_else(|| OpenError::Name(host.to_owned()))?;
    let connector = TlsConnector::from(Arc::clone(&tls.client));
    let stream = connector.connect(name, socket).await.map_err(OpenError::Tls)?;
    let shown = shown_by(stream.get_ref().1);
    open_on(stream, spawn, (guard, shown), kind).await
}

async fn open_on<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: I,
    spawn: Spawn,
    (guard, shown): (DropGuard, Option<Shown>),
    kind: Kind,
) -> Result<Call, OpenError> {
    let mut builder = client::Builder::new(spawn.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let (requests, connection) = builder.handshake(TokioIo::new(io)).await.map_err(OpenError::Http)?;
    spawn.execute(connection);
    // The name is not looked at: TLS has asked for that of the certificate.
    let mut grpc = tonic::client::Grpc::with_origin(Requests(requests), Uri::from_static("http://ferrule"))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let (outlet, outbound) = outlet();
    let path = PathAndQuery::from_static(kind.path());
    let response = grpc.streaming(tonic::Request::new(outbound), path, Frames).await;
    let inbound = response.map_err(|status| OpenError::Call(told(&status)))?.into_inner();
    Ok(Call { kind, outlet, inbound, connection: guard, shown })
}

/// What tonic sends a request by.
struct Requests(client::SendRequest<Body>);

impl GrpcService<Body> for Requests {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

// === the side that is dialled ===

/// Serves a connection until it ends: its one stream is given to `take`.
///
/// Dropped, with `connection` cancelled, nothing of it remains.
pub(crate) async fn serve(
    tasks: &TaskTracker,
    connection: &CancellationToken,
    tls: Option<Tls>,
    socket: TcpStream,
    take: impl Fn(Call) + Send + Sync + 'static,
) -> io::Result<()> {
    tune(&socket)?;
    let spawn = Spawn { tasks: tasks.clone(), connection: connection.clone() };
    match tls {
        None => serve_on(socket, spawn, None, take).await,
        Some(tls) => {
            let stream = TlsAcceptor::from(tls.server).accept(socket).await?;
            let shown = shown_by(stream.get_ref().1);
            serve_on(stream, spawn, shown, take).await
        }
    }
}

fn shown_by(connection: &rustls::CommonState) -> Option<Shown> {
    let chain = connection.peer_certificates()?.iter();
    Some(chain.map(|certificate| certificate.clone().into_owned()).collect())
}

async fn serve_on<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: I,
    spawn: Spawn,
    shown: Option<Shown>,
    take: impl Fn(Call) + Send + Sync + 'static,
) -> io::Result<()> {
    let mut builder = server::Builder::new(spawn.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let (take, taken) = (Arc::new(take), Arc::new(AtomicBool::new(false)));
    let service = service_fn(move |request: Request<Incoming>| {
        let (take, taken, connection) = (Arc::clone(&take), Arc::clone(&taken), spawn.connection.clone());
        let shown = shown.clone();
        async move {
            let Some(kind) = Kind::of(request.uri().path()) else {
                let status =
                    Status::unimplemented("there are the calls Control and Data of ferrule.link.v1.Link");
                return Ok::<_, Infallible>(status.into_http());
            };
            if taken.swap(true, Ordering::Relaxed) {
                return Ok(Status::resource_exhausted("a connection is for one stream").into_http());
            }
            let answer = Answer { kind, connection, shown, take };
            let mut grpc = tonic::server::Grpc::new(Frames)
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX);
            Ok(grpc.streaming(answer, request).await)
        }
    });
    builder.serve_connection(TokioIo::new(io), service).await.map_err(io::Error::other)
}

/// What tonic gives the stream of a request to.
struct Answer<F> {
    kind: Kind,
    connection: CancellationToken,
    shown: Option<Shown>,
    take: Arc<F>,
}

/// What tonic takes the answer from.
struct Answers(Outbound);

impl<F: Fn(Call)> StreamingService<Frame> for Answer<F> {
    type Response = Frame;
    type ResponseStream = Answers;
    type Future = Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Frame>>) -> Self::Future {
        let (outlet, outbound) = outlet();
        let connection = self.connection.clone().drop_guard();
        let (kind, shown) = (self.kind, self.shown.clone());
        (self.take)(Call { kind, outlet, inbound: request.into_inner(), connection, shown });
        ready(Ok(tonic::Response::new(Answers(outbound))))
    }
}

impl Stream for Answers {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context).map(|frame| frame.map(Ok))
    }
}
