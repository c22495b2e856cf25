package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

const owners = `"tagOwners": {"tag:a": ["autogroup:admin"], "tag:b": ["tag:a"]}, "groups": {"group:ops": ["x@y.z"]}`

var (
	nodeA = &Node{ID: 1, Identity: Identity{Tags: []string{"tag:a"}}}
	nodeB = &Node{ID: 2, Identity: Identity{Tags: []string{"tag:b"}}}
	ops   = &Node{ID: 3, Identity: Identity{User: "x@y.z"}}
	admin = &Node{ID: 4, Identity: Identity{User: "root@y.z", Admin: true}}
	all   = []*Node{nodeA, nodeB, ops, admin}
)

// flatten writes a filter as "source>port/protocols" per source and port, IPv4 only, to compare at a glance.
func flatten(filter []tailcfg.FilterRule) (lines []string) {
	for _, rule := range filter {
		for _, source := range rule.SrcIPs {
			for _, dst := range rule.DstPorts {
				if strings.Contains(source, ":") || strings.Contains(dst.IP, ":") {
					continue
				}
				var protos []string
				for _, proto := range rule.IPProto {
					protos = append(protos, map[int]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}[proto])
				}
				lines = append(lines, source+">"+dst.IP+":"+dst.Ports.String()+"/"+strings.Join(protos, "+"))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func TestFilter(t *testing.T) {
	for name, test := range map[string]struct {
		rules string
		self  *Node
		want  []string
	}{
		"grant tcp": {`"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]`, nodeB,
			[]string{"100.64.0.1>100.64.0.2:22/tcp"}},
		"one way only": {`"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]`, nodeA, nil},
		"grant without protocol": {`"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["53"]}]`, nodeB,
			[]string{"100.64.0.1>100.64.0.2:53/"}},
		"grant all": {`"grants": [{"src": ["*"], "dst": ["tag:b"], "ip": ["*"]}]`, nodeB,
			[]string{"100.64.0.1>100.64.0.2:*/", "100.64.0.3>100.64.0.2:*/", "100.64.0.4>100.64.0.2:*/"}},
		"grant icmp": {`"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["icmp:*"]}]`, nodeB,
			[]string{"100.64.0.1>100.64.0.2:*/icmp+icmp6"}},
		"acl with range and list": {
			`"acls": [{"action": "accept", "proto": "tcp", "src": ["group:ops"], "dst": ["tag:b:80,8000-8010"]}]`, nodeB,
			[]string{"100.64.0.3>100.64.0.2:80/tcp", "100.64.0.3>100.64.0.2:8000-8010/tcp"}},
		"admin and no other user": {`"grants": [{"src": ["autogroup:admin"], "dst": ["tag:a"], "ip": ["tcp:22"]}]`, nodeA,
			[]string{"100.64.0.4>100.64.0.1:22/tcp"}},
		"members are not tagged": {`"grants": [{"src": ["autogroup:member"], "dst": ["tag:a"], "ip": ["udp:1"]}]`, nodeA,
			[]string{"100.64.0.3>100.64.0.1:1/udp", "100.64.0.4>100.64.0.1:1/udp"}},
		"a user": {`"grants": [{"src": ["x@y.z"], "dst": ["tag:a"], "ip": ["tcp:1"]}]`, nodeA,
			[]string{"100.64.0.3>100.64.0.1:1/tcp"}},
		"nothing": {`"grants": []`, nodeA, nil},
	} {
		t.Run(name, func(t *testing.T) {
			policy, err := ParsePolicy([]byte("{" + owners + "," + test.rules + ", /* HuJSON */}"))
			if err != nil {
				t.Fatal(err)
			}
			peers := slices.DeleteFunc(slices.Clone(all), func(n *Node) bool { return n == test.self })
			filter := policy.Filter(test.self, peers)
			if filter == nil {
				t.Error("a nil filter would leave the client's last one in force")
			}
			if got := flatten(filter); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestFilterCoversIPv6(t *testing.T) {
	policy, err := ParsePolicy([]byte("{" + owners + `, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	rule := policy.Filter(nodeB, all)[0]
	if len(rule.SrcIPs) != 2 || len(rule.DstPorts) != 2 || !strings.HasPrefix(rule.DstPorts[1].IP, "fd7a:115c:a1e0:") {
		t.Errorf("an address is missing: %+v", rule)
	}
}

func TestConnected(t *testing.T) {
	policy, err := ParsePolicy([]byte("{" + owners + `, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range []struct {
		a, b *Node
		want bool
	}{{nodeA, nodeB, true}, {nodeB, nodeA, true}, {nodeA, ops, false}, {admin, nodeB, false}} {
		if got := policy.Connected(pair.a.Identity, pair.b.Identity); got != pair.want {
			t.Errorf("%v and %v: got %v", pair.a.Identity, pair.b.Identity, got)
		}
	}
}

func TestRefused(t *testing.T) {
	const grant = `"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]`
	for name, test := range map[string]struct{ rules, want string }{
		"not HuJSON":           {`"grants": [`, "line"},
		"unknown section":      {`"ssh": []`, `unknown field "ssh"`},
		"unknown key":          {`"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "via": ["tag:a"]}]`, `unknown field "via"`},
		"unknown tag":          {`"grants": [{"src": ["tag:typo"], "dst": ["tag:b"], "ip": ["*"]}]`, `grants[0]: "tag:typo" is not defined`},
		"unknown group":        {`"acls": [{"action": "accept", "src": ["group:no"], "dst": ["tag:b:1"]}]`, `"group:no" is not defined`},
		"unknown autogroup":    {`"grants": [{"src": ["autogroup:self"], "dst": ["tag:b"], "ip": ["*"]}]`, "autogroup:self"},
		"attribute of nobody":  {`"nodeAttrs": [{"target": ["tag:no"], "attr": ["x"]}]`, `nodeAttrs[0]: "tag:no"`},
		"empty source":         {`"grants": [{"dst": ["tag:b"], "ip": ["*"]}]`, "src is empty"},
		"deny":                 {`"acls": [{"action": "deny", "src": ["*"], "dst": ["tag:b:1"]}]`, "can only accept"},
		"no port":              {`"acls": [{"action": "accept", "src": ["*"], "dst": ["b"]}]`, "has no port"},
		"port out of range":    {`"grants": [{"src": ["*"], "dst": ["tag:b"], "ip": ["tcp:65536"]}]`, "65536"},
		"range upside down":    {`"grants": [{"src": ["*"], "dst": ["tag:b"], "ip": ["tcp:9-8"]}]`, "9-8"},
		"unknown protocol":     {`"grants": [{"src": ["*"], "dst": ["tag:b"], "ip": ["sctp:1"]}]`, "sctp"},
		"accept is denied":     {grant + `, "tests": [{"src": "tag:a", "accept": ["tag:b:23"]}]`, "tests[0]: tag:a -> tag:b:23 is denied"},
		"deny is allowed":      {grant + `, "tests": [{"src": "tag:a", "deny": ["tag:b:22"]}]`, "tag:a -> tag:b:22 is allowed"},
		"other protocol":       {grant + `, "tests": [{"src": "tag:a", "proto": "udp", "accept": ["tag:b:22"]}]`, "is denied"},
		"group without right":  {grant + `, "tests": [{"src": "group:ops", "accept": ["tag:b:22"]}]`, "is denied"},
		"test of nothing":      {grant + `, "tests": [{"src": "tag:a"}]`, "expects nothing"},
		"test of a range":      {grant + `, "tests": [{"src": "tag:a", "accept": ["tag:b:22-23"]}]`, "names one port"},
		"test of everybody":    {grant + `, "tests": [{"src": "*", "deny": ["tag:b:22"]}]`, "cannot stand in a test"},
		"all mistakes at once": {`"grants": [{"src": ["tag:x"], "dst": ["tag:y"], "ip": ["tcp:1"]}]`, `grants[0]: "tag:x"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParsePolicy([]byte("{" + owners + "," + test.rules + "}"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	policy, err := ParsePolicy([]byte("{" + owners + `, "nodeAttrs": [{"target": ["tag:a", "x@y.z"], "attr": ["one", "two"]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []tailcfg.NodeCapability{"one", "two"}
	for _, node := range all {
		got := policy.Attributes(node.Identity)
		if hit := node == nodeA || node == ops; hit && !slices.Equal(got, want) || !hit && len(got) > 0 {
			t.Errorf("%v has %v", node.Identity, got)
		}
	}
}

func TestMayRetag(t *testing.T) {
	policy, err := ParsePolicy([]byte("{" + owners + "}"))
	if err != nil {
		t.Fatal(err)
	}
	if !policy.MayRetag([]string{"tag:a"}, []string{"tag:b"}) {
		t.Error("tag:a owns tag:b")
	}
	if policy.MayRetag([]string{"tag:b"}, []string{"tag:a"}) {
		t.Error("only admins own tag:a")
	}
}

// TestRepositoryPolicy holds the project's own policy against the list of ports, written here a second time on purpose.
func TestRepositoryPolicy(t *testing.T) {
	text, err := os.ReadFile("../../roles/tailscale/files/policy.hujson")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	monk := &Node{ID: 1, Identity: Identity{Tags: []string{"tag:monk"}}}
	kscloud1 := &Node{ID: 2, Identity: Identity{Tags: []string{"tag:kscloud1"}}}
	guest := &Node{ID: 3, Identity: Identity{User: "guest@example.com"}}
	owner := &Node{ID: 4, Identity: Identity{User: "owner@example.com", Admin: true}}
	nodes := []*Node{monk, kscloud1, guest, owner}
	for _, test := range []struct {
		self *Node
		want string
	}{
		{monk, "100.64.0.2>100.64.0.1:3306/tcp 100.64.0.2>100.64.0.1:5432/tcp 100.64.0.2>100.64.0.1:8081/tcp " +
			"100.64.0.2>100.64.0.1:8083/tcp 100.64.0.4>100.64.0.1:22/tcp"},
		{kscloud1, "100.64.0.1>100.64.0.2:22/tcp 100.64.0.1>100.64.0.2:3306/tcp 100.64.0.1>100.64.0.2:5432/tcp " +
			"100.64.0.1>100.64.0.2:6379/tcp 100.64.0.1>100.64.0.2:8081/tcp 100.64.0.1>100.64.0.2:8083/tcp " +
			"100.64.0.1>100.64.0.2:9100/tcp " +
			"100.64.0.4>100.64.0.2:22/tcp"},
		{guest, ""},
		{owner, ""},
	} {
		if got := strings.Join(flatten(policy.Filter(test.self, nodes)), " "); got != test.want {
			t.Errorf("into %v: got %s, want %s", test.self.Identity, got, test.want)
		}
	}
	if policy.Connected(guest.Identity, monk.Identity) || policy.Connected(owner.Identity, guest.Identity) {
		t.Error("a guest must see nobody")
	}
}
