//! Ends of ways as one writes them on tokio, each a process of its own: a connection each, or yamux over one.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::task::Poll;

use clap::Subcommand;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Connection, ConnectionError, Mode, Stream};

/// Tokio's own.
const TOKIO_BUFFER: usize = 8 * 1024;

const LARGE_BUFFER: usize = 256 * 1024;

/// What a frame of yamux carries at most; with tokio's own 8 KiB it would be half of that.
const YAMUX_BUFFER: usize = 16 * 1024;

/// An end that the comparison starts.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Relay {
    #[command(hide = true)]
    TokioNear { socket: PathBuf, peer: SocketAddr },
    #[command(hide = true)]
    TokioFar { socket: PathBuf },
    #[command(hide = true)]
    TokioBNear { socket: PathBuf, peer: SocketAddr },
    #[command(hide = true)]
    TokioBFar { socket: PathBuf },
    #[command(hide = true)]
    YamuxNear { socket: PathBuf, peer: SocketAddr },
    #[command(hide = true)]
    YamuxFar { socket: PathBuf },
}

impl Relay {
    /// Until it is killed, or its connection ends.
    pub(crate) fn run(self) -> io::Result<()> {
        // Its loop too runs on a worker, where waking a stream's task costs less than from this thread.
        let end = Runtime::new()?.block_on(async {
            match self {
                Self::TokioNear { socket, peer } => tokio::spawn(tokio_near(socket, peer, TOKIO_BUFFER)),
                Self::TokioFar { socket } => tokio::spawn(tokio_far(socket, TOKIO_BUFFER)),
                Self::TokioBNear { socket, peer } => tokio::spawn(tokio_near(socket, peer, LARGE_BUFFER)),
                Self::TokioBFar { socket } => tokio::spawn(tokio_far(socket, LARGE_BUFFER)),
                Self::YamuxNear { socket, peer } => tokio::spawn(yamux_near(socket, peer)),
                Self::YamuxFar { socket } => tokio::spawn(yamux_far(socket)),
            }
            .await
        });
        end?
    }
}

async fn tokio_near(socket: PathBuf, peer: SocketAddr, buffer: usize) -> io::Result<()> {
    let listener = listen_unix(socket)?;
    loop {
        let (mut unix, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut tcp = connect(peer).await?;
            copy_bidirectional_with_sizes(&mut unix, &mut tcp, buffer, buffer).await
        });
    }
}

async fn tokio_far(socket: PathBuf, buffer: usize) -> io::Result<()> {
    let listener = listen_tcp().await?;
    loop {
        let (mut tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let socket = socket.clone();
        tokio::spawn(async move {
            let mut unix = UnixStream::connect(socket).await?;
            copy_bidirectional_with_sizes(&mut tcp, &mut unix, buffer, buffer).await
        });
    }
}

async fn yamux_near(socket: PathBuf, peer: SocketAddr) -> io::Result<()> {
    let mut connection = Connection::new(connect(peer).await?.compat(), yamux::Config::default(), Mode::Client);
    let listener = listen_unix(socket)?;
    let mut waiting = None;
    let end = poll_fn(|context| {
        loop {
            if waiting.is_none()
                && let Poll::Ready(accepted) = listener.poll_accept(context).map_err(ConnectionError::Io)?
            {
                waiting = Some(accepted.0);
            }
            if waiting.is_some()
                && let Poll::Ready(stream) = connection.poll_new_outbound(context)?
                && let Some(unix) = waiting.take()
            {
                tokio::spawn(carry(unix, stream));
                continue;
            }
            // It is this that moves the bytes of all streams.
            return connection.poll_next_inbound(context).map(Option::transpose);
        }
    });
    end.await.map(drop).map_err(io::Error::other)
}

async fn yamux_far(socket: PathBuf) -> io::Result<()> {
    let (tcp, _) = listen_tcp().await?.accept().await?;
    tcp.set_nodelay(true)?;
    let mut connection = Connection::new(tcp.compat(), yamux::Config::default(), Mode::Server);
    while let Some(stream) = poll_fn(|context| connection.poll_next_inbound(context)).await {
        let (stream, socket) = (stream.map_err(io::Error::other)?, socket.clone());
        tokio::spawn(async move { carry(UnixStream::connect(socket).await?, stream).await });
    }
    Ok(())
}

async fn carry(mut unix: UnixStream, stream: Stream) -> io::Result<()> {
    let mut stream = stream.compat();
    // The peer learns of a stream by its first frame, and what is behind it may be the one to speak first: so an empty one.
    let _nothing = stream.write(&[]).await?;
    copy_bidirectional_with_sizes(&mut unix, &mut stream, YAMUX_BUFFER, YAMUX_BUFFER).await?;
    Ok(())
}

fn listen_unix(socket: PathBuf) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(&socket)?;
    eprintln!("listening on {}", socket.display());
    Ok(listener)
}

async fn listen_tcp() -> io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("listening on {}", listener.local_addr()?);
    Ok(listener)
}

async fn connect(peer: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(peer).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}
