package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

var authKeys = map[string]Identity{
	"key-a":     {Tags: []string{"tag:a"}},
	"key-ab":    {Tags: []string{"tag:a", "tag:b"}},
	"key-user":  {User: "x@y.z"},
	"key-admin": {User: "root@y.z", Admin: true},
}

func newControl(t *testing.T) *Control {
	t.Helper()
	policy, err := ParsePolicy([]byte("{" + owners + `, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	tailnet, err := OpenTailnet(filepath.Join(t.TempDir(), "state.json"), policy)
	if err != nil {
		t.Fatal(err)
	}
	return &Control{tailnet: tailnet, url: "https://control.test", domain: "tail.test"}
}

// device is a client: its machine key stays, its node key changes at each sign-in.
type device struct {
	machine key.MachinePublic
	node    key.NodePublic
	name    string
}

func newDevice(name string) *device {
	return &device{key.NewMachine().Public(), key.NewNode().Public(), name}
}

func (d *device) register(c *Control, authKey string, tags ...string) tailcfg.RegisterResponse {
	req := &tailcfg.RegisterRequest{
		NodeKey: d.node, Hostinfo: &tailcfg.Hostinfo{Hostname: d.name, RequestTags: tags},
		Auth: &tailcfg.RegisterResponseAuth{AuthKey: authKey},
	}
	return c.register(d.machine, req, authKeys)
}

func TestRegister(t *testing.T) {
	c := newControl(t)
	monk := newDevice("monk")
	if res := monk.register(c, "wrong"); !strings.Contains(res.Error, "invalid key") {
		t.Errorf("a wrong key got %+v", res)
	}
	if res := monk.register(c, ""); res.AuthURL == "" || res.MachineAuthorized {
		t.Errorf("no key got %+v", res)
	}
	if res := monk.register(c, "key-a", "tag:b"); !strings.Contains(res.Error, "not permitted") {
		t.Errorf("a tag that the key does not carry got %+v", res)
	}
	if len(c.tailnet.Nodes) != 0 {
		t.Fatal("a refused device became a node")
	}
	if res := monk.register(c, "key-ab", "tag:a"); res.Error != "" || !res.MachineAuthorized {
		t.Fatalf("a good key got %+v", res)
	}
	if node := c.tailnet.Nodes[0]; !slices.Equal(node.Tags, []string{"tag:a"}) || node.Name != "monk" {
		t.Errorf("stored %+v", node)
	}
	if res := monk.register(c, ""); !res.MachineAuthorized {
		t.Errorf("a restarted client without a key got %+v", res)
	}
	if other := newDevice("monk"); other.register(c, "key-a").Error != "" || c.tailnet.Nodes[1].Name != "monk-1" {
		t.Errorf("a second monk is named %q", c.tailnet.Nodes[1].Name)
	}
}

func TestKeyExpiry(t *testing.T) {
	c := newControl(t)
	monk := newDevice("monk")
	monk.register(c, "key-a")
	address := c.tailnet.Nodes[0].Addresses()[0]
	c.tailnet.Nodes[0].Expiry = time.Now().Add(-time.Minute)
	if res := monk.register(c, ""); !res.NodeKeyExpired {
		t.Errorf("an expired key got %+v", res)
	}
	monk.node = key.NewNode().Public()
	if res := monk.register(c, ""); res.AuthURL == "" {
		t.Errorf("a new node key without an auth key got %+v", res)
	}
	if res := monk.register(c, "key-a"); !res.MachineAuthorized {
		t.Errorf("signing in again got %+v", res)
	}
	if len(c.tailnet.Nodes) != 1 || c.tailnet.Nodes[0].Addresses()[0] != address {
		t.Error("signing in again changed the address")
	}
}

func TestTagChange(t *testing.T) {
	for name, test := range map[string]struct {
		from, to    string
		wantTag     string
		wantExpired bool
	}{
		"an owner of the new tag":   {"tag:a", "tag:b", "tag:b", false},
		"not an owner: sign in":     {"tag:b", "tag:a", "tag:b", true},
		"the same tag":              {"tag:a", "tag:a", "tag:a", false},
		"a tag nobody ever defined": {"tag:a", "tag:z", "tag:a", true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newControl(t)
			d := newDevice("x")
			d.register(c, "key-ab", test.from)
			c.report(d.machine, &tailcfg.MapRequest{
				NodeKey: d.node, Hostinfo: &tailcfg.Hostinfo{Hostname: "renamed", RequestTags: []string{test.to}},
			})
			node := c.tailnet.Nodes[0]
			if !slices.Equal(node.Tags, []string{test.wantTag}) || !node.Expiry.IsZero() != test.wantExpired {
				t.Errorf("tags %v, expiry %v", node.Tags, node.Expiry)
			}
			if node.Name != "renamed" {
				t.Errorf("named %q", node.Name)
			}
		})
	}
}

func TestRestartKeepsNodes(t *testing.T) {
	c := newControl(t)
	monk := newDevice("monk")
	monk.register(c, "key-a")
	again, err := OpenTailnet(c.tailnet.path, c.tailnet.policy)
	if err != nil {
		t.Fatal(err)
	}
	if !again.NoiseKey.Equal(c.tailnet.NoiseKey) || again.NextID != 2 {
		t.Error("the server's key or counter changed")
	}
	if res := monk.register(&Control{tailnet: again}, ""); !res.MachineAuthorized {
		t.Errorf("a known device got %+v", res)
	}
	if node := again.Nodes[0]; !slices.Equal(node.Tags, []string{"tag:a"}) {
		t.Errorf("tags are %v", node.Tags)
	}
}

// TestStream follows what one client hears: peers that a rule joins with it, then a peer that leaves.
func TestStream(t *testing.T) {
	c := newControl(t)
	a, b, guest := newDevice("a"), newDevice("b"), newDevice("guest")
	a.register(c, "key-ab", "tag:a")
	b.register(c, "key-ab", "tag:b")
	guest.register(c, "key-user")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	heard, done := make(chan *tailcfg.MapResponse), make(chan struct{})
	defer func() { cancel(); <-done }()
	go func() {
		defer close(done)
		_ = c.stream(ctx, b.machine, &tailcfg.MapRequest{NodeKey: b.node}, func(m *tailcfg.MapResponse) error {
			select {
			case heard <- m:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	first := <-heard
	if len(first.Peers) != 1 || first.Peers[0].Name != "a.tail.test." {
		t.Fatalf("b sees %+v", first.Peers)
	}
	if got := flatten(first.PacketFilters["base"]); !slices.Equal(got, []string{"100.64.0.1>100.64.0.2:22/tcp"}) {
		t.Errorf("filter %v", got)
	}
	if err := c.tailnet.Update(func() error { c.tailnet.remove(c.tailnet.byName("a")); return nil }); err != nil {
		t.Fatal(err)
	}
	if second := <-heard; !slices.Equal(second.PeersRemoved, []tailcfg.NodeID{1}) || len(second.PacketFilters["base"]) != 0 {
		t.Errorf("after a left: %+v", second)
	}
}

func TestPolicyReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.hujson")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var applied []*Policy
	watcher := &PolicyWatcher{path: file, apply: func(p *Policy) error { applied = append(applied, p); return nil }}
	write("{ // a comment\n" + owners + `, "tests": [{"src": "tag:a", "deny": ["tag:b:22"]}]}`)
	for range 2 { // a file that did not change is not loaded again
		if err := watcher.Load(); err != nil || len(applied) != 1 {
			t.Fatalf("first load: %v, applied %d times", err, len(applied))
		}
	}
	write("{" + owners + `, "tests": [{"src": "tag:a", "accept": ["tag:b:22"]}]}`)
	if err := watcher.Load(); err == nil || len(applied) != 1 || watcher.Status().Rejected == "" {
		t.Errorf("a policy whose test fails was taken: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := watcher.Load(); err == nil {
		t.Error("a file that is gone went unnoticed")
	}
	write("{" + owners + "}")
	if err := watcher.Load(); err != nil || len(applied) != 2 || watcher.Status().Rejected != "" {
		t.Errorf("a good policy after it was not taken: %v", err)
	}
}
