package workloads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sampan-cloud/sampan/internal/testhost"
	. "github.com/sampan-cloud/sampan/internal/testhost/labtest"
)

// TestServers: one host runs all of them, on one network, as somebody's stack would.
func TestServers(t *testing.T) {
	l, h := one(t)
	Docker(t, h, "network", "create", "stack")
	t.Run("nginx in front of node", func(t *testing.T) { nginx(t, l, h) })
	t.Run("PostgreSQL recovers after a kill", func(t *testing.T) { postgres(t, h) })
	t.Run("Redis keeps its data when daemon and keeper are killed", func(t *testing.T) { redis(t, h) })
	t.Run("RabbitMQ keeps a message over a restart", func(t *testing.T) { rabbit(t, h) })
	t.Run("a client in Python", func(t *testing.T) { python(t, h) })
}

const nodeServer = `require('http').createServer((q, r) => r.end('node got ' + q.url + ' from ' + q.headers['x-real-ip'])).listen(3000)`

const nginxConf = `user www-data; daemon off; error_log stderr; pid /run/nginx.pid; events {}
http { access_log /dev/stdout; server { listen 80; location / { proxy_set_header X-Real-IP $remote_addr; proxy_pass http://app:3000; } } }`

func nginx(t *testing.T, l *testhost.Lab, h *testhost.Host) {
	Docker(t, h, "run", "-d", "--name", "app", "--network", "stack", "--init", "--memory", "128m", "--health-cmd", "bash -c ': < /dev/tcp/127.0.0.1/3000'",
		"--health-interval", "1s", image, "node", "-e", nodeServer)
	eventually(t, h, "=healthy", "inspect", "-f", "={{.State.Health.Status}}", "app")
	Docker(t, h, "run", "-d", "--name", "front", "--network", "stack", "-p", "8080:80", "--read-only", "--tmpfs", "/run", "--tmpfs", "/var/lib/nginx",
		"--health-cmd", "bash -c ': < /dev/tcp/127.0.0.1/80'", "--health-interval", "1s", "--health-start-interval", "100ms", "--health-start-period", "5s",
		image, "sh", "-c", "echo '"+nginxConf+"' > /run/nginx.conf && exec nginx -c /run/nginx.conf")
	eventually(t, h, "=healthy", "inspect", "-f", "={{.State.Health.Status}}", "front")
	client := l.Client.HTTP(Patience)
	get := func() string {
		resp, err := client.Get(fmt.Sprintf("http://%s:8080/orders", h.Addr))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %q %v", resp.Status, body, err)
		}
		return string(body)
	}
	if got := get(); got != "node got /orders from "+l.Client.Addr.String() {
		t.Errorf("through nginx came %q", got)
	}
	eventually(t, h, "GET /orders HTTP/1.1\" 200", "logs", "front")
	Docker(t, h, "kill", "-s", "HUP", "front") // nginx reads its configuration anew
	get()
	Docker(t, h, "stop", "-s", "QUIT", "front") // and ends in peace
	if code := Docker(t, h, "inspect", "-f", "{{.State.ExitCode}}", "front"); code != "0" {
		t.Errorf("nginx ended with %s", code)
	}
}

func postgres(t *testing.T, h *testhost.Host) {
	Docker(t, h, "run", "-d", "--name", "db", "--network", "stack", "-u", "postgres", "-v", "pgdata:/var/lib/postgresql", "--shm-size", "128m", "--stop-signal", "INT",
		image, "sh", "-c", "[ -e /var/lib/postgresql/d/PG_VERSION ] || initdb -D /var/lib/postgresql/d -A trust >/dev/null; exec postgres -D /var/lib/postgresql/d -c listen_addresses='*' -c unix_socket_directories=/tmp")
	sql := func(text string) string {
		t.Helper()
		return Docker(t, h, "exec", "db", "psql", "-h", "/tmp", "-v", "ON_ERROR_STOP=1", "-Atqc", text)
	}
	up := func() {
		t.Helper()
		eventually(t, h, "accepting connections", "exec", "db", "pg_isready", "-h", "/tmp")
	}
	up()
	sql("create table t (n int primary key, filler text)")
	sql("insert into t select n, repeat('x', 500) from generate_series(1, 20000) n")
	// Killed in the middle of another transaction, which must not be seen afterwards.
	Docker(t, h, "exec", "-d", "db", "psql", "-h", "/tmp", "-Atqc", "begin; insert into t select n, 'lost' from generate_series(20001, 40000) n; select pg_sleep(600)")
	eventually(t, h, "pg_sleep", "exec", "db", "psql", "-h", "/tmp", "-Atqc", "select query from pg_stat_activity where wait_event = 'PgSleep'")
	Docker(t, h, "kill", "db")
	Docker(t, h, "start", "db")
	up()
	eventually(t, h, "automatic recovery in progress", "logs", "db")
	if got := sql("select count(*), count(*) filter (where filler = 'lost') from t"); got != "20000|0" {
		t.Errorf("after its recovery the table has %s rows", got)
	}
	// The whole host's daemons go; the server does not even notice.
	pid := Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "db")
	killBoth(t, h)
	if got := sql("select count(*) from t"); got != "20000" || Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "db") != pid {
		t.Errorf("after the daemons' death the table has %s rows", got)
	}
	Docker(t, h, "stop", "db")
	eventually(t, h, "database system is shut down", "logs", "db")
}

// killBoth kills daemon and keeper and starts the daemon again.
func killBoth(t *testing.T, h *testhost.Host) {
	t.Helper()
	if err := h.KillDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.KillKeeper(); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func redis(t *testing.T, h *testhost.Host) {
	Docker(t, h, "run", "-d", "--name", "cache", "--network", "stack", "-u", "redis", "-v", "redisdata:/var/lib/redis", "--restart", "always", "--cap-drop", "ALL",
		image, "redis-server", "--dir", "/var/lib/redis", "--appendonly", "yes", "--appendfsync", "always", "--protected-mode", "no")
	eventually(t, h, "PONG", "exec", "cache", "redis-cli", "ping")
	Docker(t, h, "exec", "cache", "redis-cli", "set", "k", "before")
	killBoth(t, h)
	if got := Docker(t, h, "exec", "cache", "redis-cli", "get", "k"); got != "before" {
		t.Errorf("after the daemons' death: %q", got)
	}
	Docker(t, h, "exec", "cache", "redis-cli", "set", "k", "after")
	pid := Docker(t, h, "inspect", "-f", "{{.State.Pid}}", "cache")
	Docker(t, h, "exec", "-d", "cache", "redis-cli", "shutdown", "save") // it ends, the exec with it, and is started again
	changed(t, h, pid, "inspect", "-f", "{{.State.Pid}}", "cache")
	eventually(t, h, "after", "exec", "cache", "redis-cli", "get", "k")
	// From another container, by name.
	if got := Docker(t, h, "run", "--rm", "--network", "stack", image, "redis-cli", "-h", "cache", "get", "k"); got != "after" {
		t.Errorf("by name: %q", got)
	}
}

// changed waits until what the docker command prints is no longer old, nor "0".
func changed(t *testing.T, h *testhost.Host, old string, args ...string) {
	t.Helper()
	Eventually(t, Patience, "docker "+strings.Join(args, " ")+" changes", func(ctx context.Context) error {
		out, err := h.Docker(ctx, args...)
		if err == nil && (out == old || out == "0") {
			err = errors.New("still " + out)
		}
		return err
	})
}

const (
	publish = `import pika
c = pika.BlockingConnection(pika.ConnectionParameters('mq')); ch = c.channel()
ch.queue_declare('orders', durable=True); ch.confirm_delivery()
ch.basic_publish('', 'orders', b'order 1', pika.BasicProperties(delivery_mode=2))
c.close()`
	consume = `import pika
c = pika.BlockingConnection(pika.ConnectionParameters('mq')); ch = c.channel()
print(ch.basic_get('orders', auto_ack=True)[2].decode()); c.close()`
)

func rabbit(t *testing.T, h *testhost.Host) {
	Docker(t, h, "run", "-d", "--name", "mq", "--hostname", "mq", "--network", "stack", "-u", "rabbitmq", "-v", "mqdata:/var/lib/rabbitmq",
		"-e", "RABBITMQ_LOG_BASE=/var/lib/rabbitmq", "-e", "RABBITMQ_LOGS=-", "-e", "HOME=/var/lib/rabbitmq", "--ulimit", "nofile=1024:1024",
		image, "sh", "-c", "mkdir -p /var/lib/rabbitmq/etc; echo 'loopback_users = none' > /var/lib/rabbitmq/etc/rabbitmq.conf; RABBITMQ_CONFIG_FILE=/var/lib/rabbitmq/etc/rabbitmq exec /usr/lib/rabbitmq/bin/rabbitmq-server")
	eventually(t, h, "Server startup complete", "logs", "mq")
	Docker(t, h, "run", "--rm", "--network", "stack", image, "python3", "-c", publish)
	Docker(t, h, "restart", "-t", "30", "mq")
	eventually(t, h, "Server startup complete", "logs", "--since", Docker(t, h, "inspect", "-f", "{{.State.StartedAt}}", "mq"), "mq")
	if got := Docker(t, h, "run", "--rm", "--network", "stack", image, "python3", "-c", consume); got != "order 1" {
		t.Errorf("after the restart came %q", got)
	}
}

// pythonClient is Docker's own SDK for Python, in a container that has the daemon's socket.
const pythonClient = `import docker, io, tarfile
d = docker.from_env()
assert d.ping()
assert d.version()['ApiVersion']
out = d.containers.run('debian/workloads:12', ['sh', '-c', 'echo out; echo err >&2'], remove=True, stderr=True)
assert sorted(out.split()) == [b'err', b'out'], out
c = d.containers.run('debian/workloads:12', ['sleep', '600'], detach=True, name='py', labels={'by': 'python'}, mem_limit='64m', tty=True, stop_signal='SIGKILL')
c.reload(); assert c.status == 'running', c.status
code, out = c.exec_run(['cat', '/etc/os-release'], demux=True); assert code == 0 and b'Debian' in out[0], out
b = io.BytesIO(); tar = tarfile.open(fileobj=b, mode='w'); i = tarfile.TarInfo('hello'); i.size = 5; tar.addfile(i, io.BytesIO(b'hello')); tar.close()
assert c.put_archive('/tmp', b.getvalue())
bits, stat = c.get_archive('/tmp/hello'); assert stat['size'] == 5, stat
assert tarfile.open(fileobj=io.BytesIO(b''.join(bits))).extractfile('hello').read() == b'hello'
s = c.stats(stream=False); assert s['memory_stats']['limit'] == 64 << 20, s
assert [x.name for x in d.containers.list(filters={'label': 'by=python'})] == ['py']
assert any('sleep' in p[-1] for p in c.top()['Processes'])
n = d.networks.create('pynet'); n.connect(c, aliases=['alias']); n.reload(); assert [x.name for x in n.containers] == ['py']; n.disconnect(c); n.remove()
v = d.volumes.create('pyvol'); assert d.volumes.get('pyvol').attrs['Driver'] == 'local'; v.remove()
image = c.commit('py/committed', tag='1'); assert 'py/committed:1' in image.tags
assert any(h['Size'] for h in image.history()); d.images.remove('py/committed:1')
try:
    d.containers.get('nobody'); raise SystemExit('found nobody')
except docker.errors.NotFound as e:
    assert 'No such container: nobody' in str(e)
c.pause(); c.reload(); assert c.status == 'paused'; c.unpause()
c.stop(); assert c.wait()['StatusCode'] == 137
assert b'' == c.logs(); c.remove()
print('all of it')`

func python(t *testing.T, h *testhost.Host) {
	got := Docker(t, h, "run", "--rm", "-v", h.Socket+":/var/run/docker.sock", image, "python3", "-c", pythonClient)
	if strings.TrimSpace(got) != "all of it" {
		t.Errorf("Docker's SDK for Python: %s", got)
	}
}

// Patience is how long an answer may take on a busy machine.
var Patience = testhost.Patient(30 * time.Second)
