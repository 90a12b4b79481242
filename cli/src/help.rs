//! What `--help` says below the options, and the man pages as sections of their own: a line that ends with a colon is a section's title,
//! one below it is an entry, its name and two spaces or more before what it means.

pub(crate) const TOOL: &str = "\
Exit status:
  0  it did what was asked
  1  it failed; the last line on stderr says why
  2  the command line makes no sense
  3  of probe: the peer speaks libvirt's RPC alone
  3 to 8  of migrate: virbistream-migrate(1) has them";

pub(crate) const SERVE: &str = "\
Exit status:
  0  it was ended by SIGTERM or SIGINT, and all streams had finished
  1  it failed, or streams had to be cut at its end; the last line on stderr says why
  2  the command line makes no sense

Signals:
  SIGTERM, SIGINT  nobody is let in any more, and streams have --drain to finish; a second signal cuts them
  SIGHUP           the certificates are read again; those that are wrong leave the ones before in use

Files:
  /etc/virbistream/serve.toml               where the service has its configuration
  /etc/pki/CA/cacert.pem                    the authority of peers over tls://
  /etc/pki/libvirt/servercert.pem           our certificate
  /etc/pki/libvirt/private/serverkey.pem    its key
  /run/virbistream                          the directory for sockets

Environment:
  LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID  the sockets that systemd made, for --listen tls+systemd:NAME
  NOTIFY_SOCKET                           where systemd is told that serve is ready, reloads or stops";

pub(crate) const CHECK_CONFIG: &str = "\
Exit status:
  0  nothing is wrong with the file
  1  it has mistakes, each told on a line of its own, or cannot be read
  2  the command line makes no sense

Files:
  /etc/virbistream/serve.toml  where the service has its configuration";

pub(crate) const TICKET: &str = "\
Exit status:
  0  the ticket was printed
  1  there is none; the last line on stderr says why
  2  the command line makes no sense";

pub(crate) const STATUS: &str = "\
Exit status:
  0  what runs was shown
  1  nothing could be asked; the last line on stderr says why
  2  the command line makes no sense";

pub(crate) const LIMIT: &str = "\
Exit status:
  0  the limit holds from now on
  1  it was not set; the last line on stderr says why
  2  the command line makes no sense";

pub(crate) const FORWARD: &str = "\
Exit status:
  0  it was ended by SIGTERM or SIGINT, and all streams had finished
  1  the session was refused or lost, or streams had to be cut; the last line on stderr says why
  2  the command line makes no sense

Files:
  /etc/pki/CA/cacert.pem                    the authority of the peer over tls://
  /etc/pki/libvirt/clientcert.pem           our certificate
  /etc/pki/libvirt/private/clientkey.pem    its key
  /run/virbistream                          the directory for sockets";

pub(crate) const DEMO: &str = "\
Exit status:
  0  every byte came
  1  it failed; the last line on stderr says why
  2  the command line makes no sense";

pub(crate) const PROBE: &str = "\
Exit status:
  0  the peer speaks BiStream
  1  it is neither, refused, or could not be asked; the last line on stderr says why
  2  the command line makes no sense
  3  the peer speaks libvirt's RPC alone";

pub(crate) const CONFORMANCE: &str = "\
Exit status:
  0  every case has passed
  1  one has not, or nobody could be asked
  2  the command line makes no sense";
