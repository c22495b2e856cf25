"""The lab's network and the containers on it: hosts, the services that hosts meet outside, and a stranger."""

from __future__ import annotations

import hashlib
import json
import secrets

from lab import certificates, engine, images, settings, tailnet_files
from lab.settings import Machine
from lab.shell import LabError, docker, run, step, wait_until

_SSH_KEY = settings.STATE / "ssh" / "id_ed25519"
_GUEST_SOCKET = "/run/tailscaled.sock"
_TAILNET_STATUS = ("busybox", "wget", "-qO-", "http://127.0.0.1:8091/status")
_KNOWN_HOSTS = settings.STATE / "ssh" / "known_hosts"
_RESOLV_CONF = settings.STATE / "resolv.conf"
CLOUDFLARE_TOKEN = settings.STATE / "cloudflare" / "api-token"
"""The API token that the lab's Cloudflare takes; made once per checkout."""


def _label() -> tuple[str, str]:
    return ("--label", f"{settings.LABEL}={settings.ROOT}")


def state(machine: Machine) -> str:
    """Return docker's word for a machine's state (`running`, `exited`, …), "absent" when there is none."""
    done = run("docker", "inspect", "--format", "{{.State.Status}}", machine.name, check=False)
    return done.stdout.strip() if done.returncode == 0 else "absent"


def refuse_other_checkouts() -> None:
    """Raise LabError when a lab of another checkout is running; remove one that is not."""
    others: dict[str, list[str]] = {}
    for line in docker("ps", "--all", "--filter", f"label={settings.LABEL}", "--format", "{{json .}}").splitlines():
        container = json.loads(line)
        root = _label_of(container["ID"], settings.LABEL)
        if root == str(settings.ROOT):
            continue
        if container["State"] == "running":
            raise LabError(f"the lab of another checkout is up.\nTake it down first: {root}/bin/lab down")
        others.setdefault(root, []).append(container["ID"])
    if others:
        for containers in others.values():
            docker("rm", "--force", "--volumes", *containers)
        remove_volumes()
        remove_network()


def ensure_network() -> None:
    """Have the lab's network."""
    if run("docker", "network", "inspect", settings.NETWORK, check=False).returncode != 0:
        docker(
            *("network", "create", "--subnet", settings.SUBNET, "--gateway", settings.GATEWAY, *_label()),
            *("--opt", "com.docker.network.bridge.name=lab0", settings.NETWORK),
        )


def _systemd_flags(machine: Machine) -> tuple[str, ...]:
    """Return what a host needs to run systemd and an engine of its own, by the version of the control groups.

    Not `--privileged`: it fails where the engine itself lacks CAP_SYS_RESOURCE, and these flags are all it takes.
    """
    flags = [
        *("--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--device=/dev/net/tun", "--tmpfs=/run", "--tmpfs=/tmp"),
        *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
        *("--security-opt=systempaths=unconfined", "--env=container=docker", "--stop-signal=SIGRTMIN+3"),
        # Nested overlay file systems need a real one below them.
        *(
            "--volume",
            f"{machine.name}-docker:/var/lib/docker",
            "--volume",
            f"{machine.name}-containerd:/var/lib/containerd",
        ),
        *("--volume", f"{certificates.CA}:/lab/ca.crt:ro", "--volume", f"{_SSH_KEY}.pub:/lab/authorized_keys:ro"),
        *_name_server(),
    ]
    if engine.cgroup_version() == 1:
        flags += [
            "--cgroupns=host",
            "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
            "--env=SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        ]
    else:
        flags += ["--cgroupns=private"]
    return tuple(flags)


def _name_server() -> tuple[str, ...]:
    """Return the flags that make a machine, and the containers inside it, use the lab's name server.

    Not `--dns`: that server would stand behind docker's own on a loopback address, where nested containers see none.
    """
    text = f"nameserver {settings.DNS.address}\n"
    if not _RESOLV_CONF.exists() or _RESOLV_CONF.read_text() != text:
        _RESOLV_CONF.write_text(text)
    return ("--volume", f"{_RESOLV_CONF}:/etc/resolv.conf:ro")


def _start(machine: Machine, *flags: str, command: tuple[str, ...] = ()) -> None:
    """Have a machine running as described: created when absent or described otherwise before, started when stopped."""
    image = images.build(machine.image)
    words = (
        *("--detach", "--name", machine.name, "--hostname", machine.name, *_label()),
        *("--network", settings.NETWORK, "--ip", machine.address, *flags, image, *command),
    )
    made_from = hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
    status = state(machine)
    if status != "absent" and _label_of(machine.name, f"{settings.LABEL}.made-from") != made_from:
        remove(machine)
        status = "absent"
    if status == "absent":
        docker("run", "--label", f"{settings.LABEL}.made-from={made_from}", *words)
    elif status != "running":
        docker("start", machine.name)


def _label_of(container: str, name: str) -> str:
    return docker("inspect", "--format", f'{{{{index .Config.Labels "{name}"}}}}', container)


def ensure_name_server() -> None:
    """Have the name server: the names of all machines, those that a connector asks for, and the homelab's own.

    Everything else goes where this machine's questions go; Cloudflare's own domains never do.
    """
    records = [f"--host-record={name},{machine.address}" for machine in settings.SERVICES for name in machine.names]
    regions = [f"region{number}.v2.argotunnel.com" for number in (1, 2)]
    records += [f"--host-record={regions[number % 2]},{address}" for number, address in enumerate(settings.TUNNEL_EDGE)]
    _start(
        settings.DNS,
        command=(
            *(
                "--no-resolv",
                "--server=127.0.0.11",
                "--cache-size=0",
                f"--address=/{settings.DOMAIN}/{settings.CLOUDFLARE.address}",
            ),
            *(f"--local=/{name}/" for name in ("cloudflare.com", "cftunnel.com", "argotunnel.com")),
            *records,
            *(f"--srv-host=_v2-origintunneld._tcp.argotunnel.com,{region},7844,1,1" for region in regions),
        ),
    )


def ensure_cloudflare() -> None:
    """Have Cloudflare's stand-in, with an API token of this checkout."""
    if not CLOUDFLARE_TOKEN.exists():
        CLOUDFLARE_TOKEN.parent.mkdir(parents=True, exist_ok=True)
        CLOUDFLARE_TOKEN.touch(0o600)
        CLOUDFLARE_TOKEN.write_text(f"{secrets.token_hex(20)}\n")
    _start(
        settings.CLOUDFLARE,
        *("--cap-add=NET_ADMIN", "--volume", f"{certificates.FOLDER}:/tls:ro", "--volume", "lab-cloudflare:/state"),
        *("--volume", f"{CLOUDFLARE_TOKEN}:/run/api-token:ro"),
        command=(
            ",".join(settings.TUNNEL_EDGE),
            *("--certificate=/tls/server.crt", "--key=/tls/server.key", f"--zone={settings.DOMAIN}"),
            *(
                "--state=/state/account.json",
                "--token-file=/run/api-token",
                f"--api-name={settings.CLOUDFLARE.address}",
            ),
            *("--ping-interval=1", "--ping-timeout=3"),
        ),
    )
    probe = ("curl", "-fsS", "--cacert", str(certificates.CA), f"https://{settings.CLOUDFLARE.address}/_edge/state")
    wait_until("Cloudflare's stand-in answers", probe, 20)


def ensure_registry() -> None:
    """Have the registry, with an address for pushes on this machine's loopback."""
    _start(
        settings.REGISTRY,
        *("--publish", f"127.0.0.1:{settings.PUSH_PORT}:5000"),
        *("--volume", "lab-registry:/var/lib/registry", "--volume", f"{certificates.FOLDER}:/tls:ro"),
    )
    wait_until("the registry answers", ("curl", "-fsS", f"http://localhost:{settings.PUSH_PORT}/v2/"), 20)


def ensure_tailnet() -> None:
    """Have the repository that tailscale is installed from, and the server that runs the tailnet."""
    tailnet_files.build()
    tailnet_files.ensure_auth_keys()
    _start(
        settings.WEB,
        *("--user=0", "--volume", f"{certificates.FOLDER}:/tls:ro"),
        *("--volume", f"{settings.ROOT}/lab/web:/etc/nginx/conf.d:ro"),
        *("--volume", f"{tailnet_files.BUILT}:/srv:ro"),
    )
    _start(
        settings.TAILNET,
        *("--volume", f"{certificates.FOLDER}:/tls:ro", "--volume", f"{tailnet_files.BUILT}:/opt/tailnet:ro"),
        *("--volume", f"{tailnet_files.FOLDER}:/etc/tailnet:ro", "--volume", f"{tailnet_files.POLICY}:/etc/policy:ro"),
        *("--volume", "lab-tailnet:/var/lib/tailnet", "--env", f"BUILT_FROM={tailnet_files.built_from()}"),
        command=(
            *(
                "/opt/tailnet/control/tailnet",
                "-policy=/etc/policy/policy.hujson",
                "-auth-keys=/etc/tailnet/auth-keys.json",
            ),
            *("-state=/var/lib/tailnet/state.json", "-cert=/tls/server.crt", "-key=/tls/server.key"),
            f"-url=https://{settings.TAILNET.address}",
        ),
    )
    wait_until("the tailnet answers", ("docker", "exec", settings.TAILNET.name, *_TAILNET_STATUS), 20)


def ensure_ssh_key() -> None:
    """Have the key pair that stands for the owner's."""
    if not _SSH_KEY.exists():
        _SSH_KEY.parent.mkdir(parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kitestacks-lab", "-f", _SSH_KEY)


def wait_for_boot(host: str) -> None:
    """Return when a host takes ssh connections."""
    ready = "systemctl is-active ssh.service && test -e /etc/ssh/ssh_host_ed25519_key.pub"
    wait_until(f"{host} has booted", ("docker", "exec", host, "sh", "-c", ready), 60)


def ensure_hosts() -> None:
    """Have both hosts booted and reachable over ssh."""
    command: tuple[str, ...] = ("/lib/systemd/systemd",)
    if engine.cgroup_version() == 1:
        # systemd 257 asks for this word on the kernel's command line, which in a container is its own.
        command += ("SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",)
    for host in settings.HOSTS:
        _start(host, *_systemd_flags(host), command=command)
    for host in settings.HOSTS:
        wait_for_boot(host.name)
    keys = [
        f"{host.address} {docker('exec', host.name, 'cat', '/etc/ssh/ssh_host_ed25519_key.pub')}\n"
        for host in settings.HOSTS
    ]
    _KNOWN_HOSTS.write_text("".join(keys))


def address(host: str) -> str:
    """Return a host's address on the lab's network; LabError for an unknown host."""
    for machine in settings.HOSTS:
        if machine.name == host:
            return machine.address
    raise LabError(f"there is no host {host!r}; there are {', '.join(machine.name for machine in settings.HOSTS)}")


def ssh_command(host: str) -> list[str]:
    """Return the words of an ssh command to a host of the lab."""
    return [
        *("ssh", "-i", str(_SSH_KEY), "-o", f"UserKnownHostsFile={_KNOWN_HOSTS}", "-o", "IdentitiesOnly=yes"),
        f"{settings.SSH_USER}@{address(host)}",
    ]


def start(host: str) -> None:
    """Switch a host on; it takes a few seconds to boot."""
    docker("start", host)


def run_on(host: str, *command: str) -> str:
    """Run a command on a host as root and return what it printed; LabError when it fails."""
    return docker("exec", host, *command)


def tailnet_address(host: str) -> str:
    """Return a host's address in the tailnet."""
    return run_on(host, "tailscale", "ip", "-4")


def connecting(address: str, port: int) -> tuple[str, ...]:
    """Return the words of a command that opens a TCP connection within three seconds, or fails and says why."""
    return ("timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}")


def can_connect(host: str, address: str, port: int) -> bool:
    """Tell whether a TCP connection from a host to an address opens within three seconds."""
    return run("docker", "exec", host, *connecting(address, port), check=False).returncode == 0


def edge_services(host: str) -> dict[str, int]:
    """Return how many healthy copies of each service a host's edge sees; empty while the edge does not answer."""
    done = run("docker", "exec", host, "curl", "-fsS", "--max-time", "2", "http://127.0.0.1:8404/services", check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def join_guest() -> None:
    """Make the stranger's container a device of the owner's in the tailnet, with the same tailscale as on the hosts."""
    unpack = "test -d /opt/tailscale || dpkg-deb -x /repository/stable/debian/pool/tailscale_*.deb /opt/tailscale"
    run_on(settings.GUEST.name, "sh", "-c", unpack)
    daemon = (
        "echo $$ >/run/tailscaled.pid; exec /opt/tailscale/usr/sbin/tailscaled"
        f" --statedir=/var/lib/tailscale --socket={_GUEST_SOCKET} --no-logs-no-support"
    )
    docker("exec", "--detach", settings.GUEST.name, "sh", "-c", daemon)
    wait_until("the guest's tailscaled", ("docker", "exec", settings.GUEST.name, "test", "-S", _GUEST_SOCKET), 20)
    _guest_tailscale(
        *("up", "--hostname=guest", f"--login-server=https://{settings.TAILNET.address}"),
        *("--auth-key=file:/lab/auth-key", "--timeout=30s"),
    )


def leave_guest() -> None:
    """Take the stranger's container out of the tailnet."""
    _guest_tailscale("logout")
    run_on(settings.GUEST.name, "sh", "-c", f"kill $(cat /run/tailscaled.pid); rm -f {_GUEST_SOCKET}")


def _guest_tailscale(*words: str) -> None:
    run_on(settings.GUEST.name, "/opt/tailscale/usr/bin/tailscale", f"--socket={_GUEST_SOCKET}", *words)


def remove(machine: Machine) -> None:
    """Remove a machine with its volumes and the control groups that it leaves."""
    identity = run("docker", "inspect", "--format", "{{.Id}}", machine.name, check=False).stdout.strip()
    if not identity:
        return
    docker("rm", "--force", "--volumes", machine.name)
    volumes = docker("volume", "ls", "--quiet", "--filter", f"name=^{machine.name}-(docker|containerd)$").splitlines()
    if volumes:
        docker("volume", "rm", *volumes)
    # With version 1 of the control groups a host makes groups beside its own, and docker removes only its own.
    run(
        *("find", "/sys/fs/cgroup", "-depth", "-type", "d", "-path", f"*/docker/{identity}*"),
        *("-exec", "rmdir", "{}", ";"),
        check=False,
    )


def remove_volumes() -> None:
    """Remove the volumes of the lab."""
    names = [f"{host.name}-{what}" for host in settings.HOSTS for what in ("docker", "containerd")] + [
        "lab-registry",
        "lab-tailnet",
        "lab-cloudflare",
    ]
    for name in names:
        run("docker", "volume", "rm", name, check=False)


def remove_network() -> None:
    """Remove the lab's network."""
    run("docker", "network", "rm", settings.NETWORK, check=False)


def up() -> None:
    """Have all of it: network, certificates, services, images in the registry, hosts."""
    refuse_other_checkouts()
    certificates.ensure()
    ensure_ssh_key()
    ensure_network()
    images.build("base")
    images.build("registry")
    images.build("dns")
    images.build("cloudflare")
    ensure_name_server()
    ensure_registry()
    images.provide()
    ensure_tailnet()
    ensure_cloudflare()
    images.build("host")
    images.build("tools")
    with step("Booting the hosts"):
        _start(
            settings.GUEST,
            *("--cap-add=NET_ADMIN", "--device=/dev/net/tun", "--env=SSL_CERT_FILE=/lab/ca.crt", *_name_server()),
            *(
                "--volume",
                f"{certificates.CA}:/lab/ca.crt:ro",
                "--volume",
                f"{tailnet_files.BUILT}/repository:/repository:ro",
            ),
            *("--volume", f"{tailnet_files.FOLDER}/auth-key-{settings.GUEST.name}:/lab/auth-key:ro"),
        )
        ensure_hosts()


def renew_hosts() -> None:
    """Have bare hosts again, and a tailnet and a Cloudflare account that have never seen them."""
    for machine in (*settings.HOSTS, settings.GUEST, settings.TAILNET, settings.CLOUDFLARE):
        remove(machine)
    run("docker", "volume", "rm", "lab-tailnet", "lab-cloudflare", check=False)
    up()


def down() -> None:
    """Remove every container, volume and the network of the lab."""
    for machine in (*settings.HOSTS, settings.GUEST, *settings.SERVICES):
        remove(machine)
    remove_volumes()
    remove_network()
