//! The same two programs on tokio: a task for each connection, on several threads.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::{PORT, ROUNDS, connections, question};

fn block_on<F: Future>(work: F) -> F::Output {
    let mut threads = Builder::new_multi_thread();
    let runtime = threads.worker_threads(3).enable_io().build();
    runtime.expect("a runtime").block_on(work)
}

/// Echoes until all connections have come and gone.
pub(super) fn serve() {
    block_on(async {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await.expect("bound");
        let mut tasks = JoinSet::new();
        for _ in 0..connections() {
            let (stream, _) = listener.accept().await.expect("accepted");
            tasks.spawn(echo(stream));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("served to its end");
        }
    });
}

async fn echo(mut stream: TcpStream) {
    let mut bytes = vec![0; 4096];
    loop {
        match stream.read(&mut bytes).await.expect("read") {
            0 => return,
            len => stream.write_all(&bytes[..len]).await.expect("written"),
        }
    }
}

/// Opens all connections, then asks on each of them at once, several times.
pub(super) fn ask(address: &str) {
    block_on(async {
        let mut streams = Vec::new();
        for _ in 0..connections() {
            streams.push(TcpStream::connect(address).await.expect("connected"));
        }
        let mut tasks = JoinSet::new();
        for (at, stream) in streams.into_iter().enumerate() {
            tasks.spawn(ask_on(at, stream));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("answered to the end");
        }
    });
}

async fn ask_on(at: usize, mut stream: TcpStream) {
    for round in 0..ROUNDS {
        let question = question(at, round);
        stream.write_all(&question).await.expect("written");
        let mut answer = vec![0; question.len()];
        stream.read_exact(&mut answer).await.expect("answered");
        assert_eq!(answer, question, "connection {at} in round {round}");
    }
    stream.shutdown().await.expect("shut");
    assert_eq!(stream.read(&mut [0; 1]).await.expect("the end"), 0);
}
