#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use std::io::Read;
use tokio::task::JoinHandle;

/// Answers with what it is asked, but `{"do":"fail"}`.
async fn echo(request: Value) -> Result<Value, String> {
    match request["do"].as_str() {
        Some("fail") => Err("it failed".to_owned()),
        Some("panic") => panic!("asked for"),
        _ => Ok(request),
    }
}

fn serve(data_dir: &Path) -> (DataDirLock, JoinHandle<()>) {
    let lock = DataDirLock::take(data_dir).unwrap();
    let control = Control::bind(&lock).unwrap();
    // Nobody is left who could ask it to stop.
    let (_, stop) = watch::channel(false);
    (lock, tokio::spawn(control.serve(echo, stop)))
}

/// Off the runtime's thread, as every client is.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn ask_there(dir: &Path, request: Value) -> Result<Value, AskError> {
    let dir = dir.to_owned();
    blocking(move || ask(&dir, "ferrule-edge", &request)).await
}

/// Sends raw bytes and reads until the other side closes.
async fn raw(dir: &Path, bytes: Vec<u8>) -> String {
    let path = dir.join(SOCKET_NAME);
    blocking(move || {
        let mut stream = StdStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It may close before all is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    })
    .await
}

#[tokio::test]
async fn it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (_lock, _server) = serve(dir.path());
    let request = json!({"do": "status", "text": "line\nbreak"});
    assert_eq!(ask_there(dir.path(), request.clone()).await.unwrap(), request);
    let error = ask_there(dir.path(), json!({"do": "fail"})).await.unwrap_err();
    assert_eq!(error.to_string(), "it failed");
    let mode = std::fs::metadata(dir.path().join(SOCKET_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let several = raw(dir.path(), b"{\"a\":1}\n{\"do\":\"fail\"}\n{\"a\":2}".to_vec()).await;
    assert_eq!(several, "{\"a\":1}\n{\"error\":\"it failed\"}\n{\"a\":2}\n");
    // A bug in one answer ends that connection alone.
    let error = ask_there(dir.path(), json!({"do": "panic"})).await.unwrap_err();
    assert!(error.to_string().contains("without an answer"), "{error}");
    assert!(ask_there(dir.path(), json!({})).await.is_ok());
}

#[tokio::test]
async fn it_stops_with_the_answers_given() {
    let dir = tempfile::tempdir().unwrap();
    let lock = DataDirLock::take(dir.path()).unwrap();
    let (asked, release) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (stop, stops) = watch::channel(false);
    let handler = {
        let (asked, release) = (Arc::clone(&asked), Arc::clone(&release));
        move |request: Value| {
            let (asked, release) = (Arc::clone(&asked), Arc::clone(&release));
            async move {
                asked.notify_one();
                release.notified().await;
                Ok(request)
            }
        }
    };
    let server = tokio::spawn(Control::bind(&lock).unwrap().serve(handler, stops));
    let idle = StdStream::connect(dir.path().join(SOCKET_NAME)).unwrap();
    let waiting = tokio::spawn({
        let dir = dir.path().to_owned();
        async move { ask_there(&dir, json!({"last": true})).await }
    });
    asked.notified().await;
    stop.send(true).unwrap();
    release.notify_one();
    server.await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), json!({"last": true}));
    assert!(!dir.path().join(SOCKET_NAME).exists());
    drop(idle);
}

#[tokio::test]
async fn garbage_is_answered_and_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (_lock, _server) = serve(dir.path());
    let at_most = format!("{{\"a\":\"{}\"}}\n", "x".repeat(64 * 1024 - 9));
    assert_eq!(at_most.len() as u64, LINE_BYTES_MAX);
    assert_eq!(raw(dir.path(), at_most.clone().into_bytes()).await, at_most);
    for garbage in [
        b"status\n".to_vec(),
        b"\n".to_vec(),
        b"[1]\n{\"a\":1}\n".to_vec(),
        b"\xff\xfe\x00\n".to_vec(),
        b"{\"do\":\"stat".to_vec(),
        vec![b'x'; 4 << 20],
        format!(" {at_most}").into_bytes(),
        vec![b'['; 60_000],
    ] {
        let shown = String::from_utf8_lossy(&garbage[..garbage.len().min(20)]).into_owned();
        let answer = raw(dir.path(), garbage).await;
        let value: Value =
            serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{shown}: {e} in {answer:?}"));
        assert!(value["error"].is_string(), "{shown}: {answer}");
        assert_eq!(answer.lines().count(), 1, "closed after it: {shown}");
    }
    assert!(ask_there(dir.path(), json!({})).await.is_ok());
}

#[tokio::test]
async fn connections_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (_lock, _server) = serve(dir.path());
    let path = dir.path().join(SOCKET_NAME);
    let mut open: Vec<StdStream> = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let path = path.clone();
        open.push(
            blocking(move || {
                let mut stream = StdStream::connect(path).unwrap();
                stream.write_all(b"{}\n").unwrap();
                stream.read_exact(&mut [0; 3]).unwrap();
                stream
            })
            .await,
        );
    }
    // One more is not served until one of them goes.
    let waiting = ask_there(dir.path(), json!({"late": true}));
    tokio::pin!(waiting);
    assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    open.pop();
    assert_eq!(waiting.await.unwrap(), json!({"late": true}));
}

#[tokio::test]
async fn one_process_a_data_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (lock, server) = serve(dir.path());
    let error = DataDirLock::take(dir.path()).unwrap_err();
    let expected = format!("another ferrule is running on this data folder ({})", dir.path().display());
    assert_eq!(error.to_string(), expected);
    // Even without the lock (a file system that has none) a live socket is not taken away.
    assert!(matches!(Control::bind(&lock), Err(ControlError::InUse(_))));
    assert!(ask_there(dir.path(), json!({})).await.is_ok());

    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert!(!dir.path().join(SOCKET_NAME).exists(), "removed");
    drop(lock);
    let (_lock, _server) = serve(dir.path());
    assert!(ask_there(dir.path(), json!({})).await.is_ok());
}

#[tokio::test]
async fn a_dead_process_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET_NAME);
    // std's listener leaves its file, as a killed process does.
    drop(StdListener::bind(&path).unwrap());
    let error = ask_there(dir.path(), json!({})).await.unwrap_err();
    let expected = format!("no ferrule runs on {}: start it with `ferrule-edge run`", dir.path().display());
    assert_eq!(error.to_string(), expected);
    let (_lock, _server) = serve(dir.path());
    assert!(ask_there(dir.path(), json!({})).await.is_ok());
}

#[tokio::test]
async fn a_long_path_works() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(100)).join("y".repeat(100));
    let error = ask_there(&long, json!({})).await.unwrap_err();
    assert!(matches!(error, AskError::NotRunning { .. }), "{error}");
    let (_lock, server) = serve(&long);
    assert_eq!(ask_there(&long, json!({"a": 1})).await.unwrap(), json!({"a": 1}));
    assert!(long.join(SOCKET_NAME).exists());
    server.abort();
    let _ = server.await;
    assert!(!long.join(SOCKET_NAME).exists());
}

#[tokio::test]
async fn what_cannot_be_used_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = DataDirLock::take(&file).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
    std::fs::create_dir(dir.path().join(SOCKET_NAME)).unwrap();
    let lock = DataDirLock::take(dir.path()).unwrap();
    let error = Control::bind(&lock).unwrap_err().to_string();
    assert!(error.starts_with("cannot replace ") && error.contains(SOCKET_NAME), "{error}");
}
