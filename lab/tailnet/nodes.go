package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"tailscale.com/atomicfile"
	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Node is one device of the tailnet. It is known by its machine key, which outlives a node key.
type Node struct {
	ID       tailcfg.NodeID
	Machine  key.MachinePublic
	Key      key.NodePublic
	Name     string    // unique in the tailnet: the host name, with a number behind it when it was taken
	Expiry   time.Time `json:",omitzero"` // of the node key; zero for never, as for tagged nodes
	Created  time.Time
	LastSeen time.Time
	Identity

	// What the node last said about itself.
	Version   tailcfg.CapabilityVersion
	Disco     key.DiscoPublic
	Endpoints []netip.AddrPort
	HomeDERP  int
	Hostinfo  *tailcfg.Hostinfo

	streams int // open map streams: online while there is one
}

// Addresses of a node follow from its number, which is never given twice.
func (n *Node) Addresses() []netip.Prefix {
	v4 := netip.AddrFrom4([4]byte{100, 64, byte(n.ID >> 8), byte(n.ID)})
	v6 := tsaddr.Tailscale4To6(v4)
	return []netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)}
}

func (n *Node) expired(now time.Time) bool { return !n.Expiry.IsZero() && n.Expiry.Before(now) }

// Tailnet is all that the server remembers. It is written to disk at each change, so that a restarted server has the
// same key, nodes and addresses, and clients reconnect without a sign-in.
type Tailnet struct {
	mu      sync.Mutex
	path    string
	changed chan struct{} // closed and replaced at each change
	policy  *Policy

	NoiseKey key.MachinePrivate
	NextID   tailcfg.NodeID
	Nodes    []*Node
}

// OpenTailnet loads the state file, or begins a new tailnet where there is none.
func OpenTailnet(path string, policy *Policy) (*Tailnet, error) {
	t := &Tailnet{path: path, changed: make(chan struct{}), policy: policy}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.NoiseKey, t.NextID = key.NewMachine(), 1
		return t, t.save()
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func (t *Tailnet) save() error {
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(t.path, text, 0o600)
}

// Update runs change under the lock, stores the result and wakes all map streams.
func (t *Tailnet) Update(change func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := change(); err != nil {
		return err
	}
	close(t.changed)
	t.changed = make(chan struct{})
	return t.save()
}

// Changed is closed at the next change.
func (t *Tailnet) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// The functions below expect the lock to be held.

func (t *Tailnet) byMachine(machine key.MachinePublic) *Node {
	return t.find(func(n *Node) bool { return n.Machine == machine })
}

func (t *Tailnet) byName(name string) *Node {
	return t.find(func(n *Node) bool { return n.Name == name })
}

func (t *Tailnet) find(match func(*Node) bool) *Node {
	if i := slices.IndexFunc(t.Nodes, match); i >= 0 {
		return t.Nodes[i]
	}
	return nil
}

func (t *Tailnet) add(machine key.MachinePublic) *Node {
	node := &Node{ID: t.NextID, Machine: machine, Created: time.Now().UTC()}
	t.NextID++
	t.Nodes = append(t.Nodes, node)
	return node
}

func (t *Tailnet) remove(node *Node) {
	t.Nodes = slices.DeleteFunc(t.Nodes, func(n *Node) bool { return n == node })
}

// rename gives the node its host name, or the first free name made from it.
func (t *Tailnet) rename(node *Node, hostname string) {
	name := hostname
	for i := 1; ; i++ {
		if other := t.byName(name); other == nil || other == node {
			node.Name = name
			return
		}
		name = fmt.Sprintf("%s-%d", hostname, i)
	}
}

// peersOf lists the nodes that a rule joins with this one.
func (t *Tailnet) peersOf(node *Node) (peers []*Node) {
	for _, other := range t.Nodes {
		if other != node && t.policy.Connected(node.Identity, other.Identity) {
			peers = append(peers, other)
		}
	}
	return peers
}
