package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/zstdframe"
)

// Control speaks the clients' protocol: https for the key exchange, then JSON inside Tailscale's Noise transport.
type Control struct {
	tailnet  *Tailnet
	url      string // the login server as clients name it, without a final slash
	domain   string // MagicDNS domain
	keysFile string // auth keys: JSON object, key -> identity
	derpMap  *tailcfg.DERPMap
}

const (
	maxRequest = 1 << 20 // bytes; a client's map request is a few kilobytes
	keepAlive  = 50 * time.Second
)

// Handler serves what clients ask for before they speak Noise, and upgrades them to it.
func (c *Control) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, tailcfg.OverTLSPublicKeyResponse{PublicKey: c.tailnet.NoiseKey.Public()})
	})
	mux.HandleFunc("/ts2021", c.upgrade)
	mux.HandleFunc("GET /auth/{id}", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "The lab's tailnet signs nobody in by browser: join with an auth key.", http.StatusNotImplemented)
	})
	return mux
}

func (c *Control) upgrade(w http.ResponseWriter, r *http.Request) {
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, c.tailnet.NoiseKey, nil)
	if err != nil {
		log.Printf("noise: %v", err)
		return
	}
	defer conn.Close()
	machine := conn.Peer()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /machine/register", func(w http.ResponseWriter, r *http.Request) {
		c.serveRegister(w, r, machine)
	})
	mux.HandleFunc("POST /machine/map", func(w http.ResponseWriter, r *http.Request) { c.serveMap(w, r, machine) })
	mux.HandleFunc("POST /machine/update-health", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Context: r.Context(), BaseConfig: &http.Server{Handler: mux}})
}

func (c *Control) serveRegister(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	var req tailcfg.RegisterRequest
	if !readJSON(w, r, &req) {
		return
	}
	if req.Followup != "" { // the client waits for a person who never comes
		<-r.Context().Done()
		return
	}
	keys, err := readKeys(c.keysFile)
	if err != nil {
		log.Printf("auth keys: %v", err)
		http.Error(w, "the lab cannot read its auth keys", http.StatusInternalServerError)
		return
	}
	response := c.register(machine, &req, keys)
	log.Printf("register %s: error=%q expired=%v authURL=%v", req.Hostinfo.Hostname, response.Error,
		response.NodeKeyExpired, response.AuthURL != "")
	writeJSON(w, response)
}

// register decides about one sign-in and answers as Tailscale does.
func (c *Control) register(machine key.MachinePublic, req *tailcfg.RegisterRequest, keys map[string]Identity) (
	res tailcfg.RegisterResponse,
) {
	if req.Hostinfo == nil {
		req.Hostinfo = &tailcfg.Hostinfo{}
	}
	err := c.tailnet.Update(func() error {
		now := time.Now().UTC()
		node := c.tailnet.byMachine(machine)
		known := node != nil && node.Key == req.NodeKey
		switch {
		case !req.Expiry.IsZero() && req.Expiry.Before(now): // tailscale logout
			if known {
				node.Expiry = now
			}
			res.NodeKeyExpired = true
			return nil
		case known && !node.expired(now):
			// Signed in already; a restarted client asks once.
		case req.Auth != nil && req.Auth.AuthKey != "":
			who, err := admit(c.tailnet.policy, keys, req.Auth.AuthKey, req.Hostinfo.RequestTags)
			if err != nil {
				res.Error = err.Error()
				return nil
			}
			if node == nil {
				node = c.tailnet.add(machine)
			}
			node.Key, node.Identity, node.Expiry = req.NodeKey, who, time.Time{}
			node.Hostinfo, node.Version = req.Hostinfo, req.Version
			c.tailnet.rename(node, req.Hostinfo.Hostname)
		case known:
			res.NodeKeyExpired = true
			return nil
		default:
			res.AuthURL = fmt.Sprintf("%s/auth/%x", c.url, req.NodeKey.Raw32())
			return nil
		}
		profile := userProfile(node.Identity)
		res.MachineAuthorized = true
		res.User = tailcfg.User{ID: profile.ID, DisplayName: profile.DisplayName}
		res.Login = tailcfg.Login{LoginName: profile.LoginName, DisplayName: profile.DisplayName}
		return nil
	})
	if err != nil {
		log.Printf("register: %v", err)
		res = tailcfg.RegisterResponse{Error: "the lab cannot store its state: " + err.Error()}
	}
	return res
}

// admit gives the identity that an auth key stands for, narrowed to the tags that were asked for.
func admit(policy *Policy, keys map[string]Identity, authKey string, wanted []string) (Identity, error) {
	who, ok := keys[authKey]
	if !ok {
		return who, fmt.Errorf("invalid key: unable to validate API key")
	}
	if len(wanted) > 0 {
		for _, tag := range wanted {
			if _, defined := policy.tagOwners[tag]; !defined || !slices.Contains(who.Tags, tag) {
				return who, fmt.Errorf("requested tags %v are invalid or not permitted", wanted)
			}
		}
		who.Tags = slices.Clone(wanted)
	}
	return who, nil
}

func readKeys(path string) (keys map[string]Identity, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

func (c *Control) serveMap(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	var req tailcfg.MapRequest
	if !readJSON(w, r, &req) {
		return
	}
	send := func(response *tailcfg.MapResponse) error { return writeMap(w, req.Compress == "zstd", response) }
	if !req.Stream {
		if !req.ReadOnly {
			c.report(machine, &req)
		}
		_ = send(&tailcfg.MapResponse{}) // a client that went away asks again
		return
	}
	if err := c.stream(r.Context(), machine, &req, send); err != nil && r.Context().Err() == nil {
		log.Printf("map stream: %v", err)
	}
}

// report stores what a node says about itself.
func (c *Control) report(machine key.MachinePublic, req *tailcfg.MapRequest) {
	err := c.tailnet.Update(func() error {
		node := c.tailnet.byMachine(machine)
		if node == nil || node.Key != req.NodeKey {
			return nil
		}
		node.Version, node.Disco, node.Endpoints = req.Version, req.DiscoKey, req.Endpoints
		if req.Hostinfo == nil {
			return nil
		}
		if wanted := req.Hostinfo.RequestTags; len(wanted) > 0 && !sameTags(wanted, node.Tags) &&
			!sameTags(wanted, node.Hostinfo.RequestTags) {
			if c.tailnet.policy.MayRetag(node.Tags, wanted) {
				node.Tags = slices.Clone(wanted)
			} else { // other tags are another identity: sign in again
				node.Expiry = time.Now().UTC()
			}
		}
		if req.Hostinfo.Hostname != node.Hostinfo.Hostname {
			c.tailnet.rename(node, req.Hostinfo.Hostname)
		}
		node.Hostinfo = req.Hostinfo
		if info := req.Hostinfo.NetInfo; info != nil && info.PreferredDERP != 0 {
			node.HomeDERP = info.PreferredDERP
		}
		return nil
	})
	if err != nil {
		log.Printf("map: %v", err)
	}
}

func sameTags(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// stream sends the node's view of the tailnet, and again whenever it looks different.
func (c *Control) stream(ctx context.Context, machine key.MachinePublic, req *tailcfg.MapRequest,
	send func(*tailcfg.MapResponse) error,
) error {
	node, err := c.countStream(machine, req.NodeKey, +1)
	if err != nil {
		return err
	}
	if node == nil { // removed from the tailnet: its key is worth nothing, and the client asks for a sign-in
		expired := &tailcfg.Node{Key: req.NodeKey, Machine: machine, KeyExpiry: time.Unix(0, 0)}
		if err := send(&tailcfg.MapResponse{Node: expired}); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	defer func() {
		if _, err := c.countStream(machine, req.NodeKey, -1); err != nil {
			log.Printf("map stream: %v", err)
		}
	}()
	var last string
	var lastPeers []tailcfg.NodeID
	for {
		changed := c.tailnet.Changed()
		response, peers := c.view(node)
		text, err := json.Marshal(response)
		if err != nil {
			return err
		}
		if string(text) != last {
			for _, id := range lastPeers {
				if !slices.Contains(peers, id) {
					response.PeersRemoved = append(response.PeersRemoved, id)
				}
			}
			if err := send(response); err != nil {
				return err
			}
			last, lastPeers = string(text), peers
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(keepAlive):
			if err := send(&tailcfg.MapResponse{KeepAlive: true}); err != nil {
				return err
			}
		}
	}
}

// countStream notes that a node's stream opened or closed, and gives the node; nil when there is none with this key.
func (c *Control) countStream(machine key.MachinePublic, nodeKey key.NodePublic, delta int) (node *Node, err error) {
	err = c.tailnet.Update(func() error {
		if found := c.tailnet.byMachine(machine); found != nil && found.Key == nodeKey {
			node = found
			node.streams += delta
			node.LastSeen = time.Now().UTC()
		}
		return nil
	})
	return node, err
}

// view is the tailnet as one node may see it, and the numbers of the peers in it.
func (c *Control) view(node *Node) (*tailcfg.MapResponse, []tailcfg.NodeID) {
	c.tailnet.mu.Lock()
	defer c.tailnet.mu.Unlock()
	peers := c.tailnet.peersOf(node)
	self := c.tailcfgNode(node)
	self.Online, self.LastSeen = nil, nil // a node knows this of itself
	// A home router must not be asked for a port by a lab.
	self.CapMap = tailcfg.NodeCapMap{tailcfg.NodeAttrDisableUPnP: nil}
	for _, attribute := range c.tailnet.policy.Attributes(node.Identity) {
		self.CapMap[attribute] = nil
	}
	if c.tailnet.find(func(n *Node) bool { return n == node }) == nil {
		self.KeyExpiry = time.Unix(0, 0)
		peers = nil
	}
	response := &tailcfg.MapResponse{
		Node:            self,
		Domain:          c.domain,
		DERPMap:         c.derpMap,
		DNSConfig:       &tailcfg.DNSConfig{Proxied: true, Domains: []string{c.domain}},
		PacketFilters:   map[string][]tailcfg.FilterRule{"*": nil, "base": c.tailnet.policy.Filter(node, peers)},
		CollectServices: "false",
	}
	var ids []tailcfg.NodeID
	profiles := map[tailcfg.UserID]tailcfg.UserProfile{}
	for _, member := range append([]*Node{node}, peers...) {
		profile := userProfile(member.Identity)
		if _, seen := profiles[profile.ID]; !seen {
			profiles[profile.ID] = profile
			response.UserProfiles = append(response.UserProfiles, profile)
		}
	}
	for _, peer := range peers {
		response.Peers = append(response.Peers, c.tailcfgNode(peer))
		ids = append(ids, peer.ID)
	}
	return response, ids
}

func (c *Control) tailcfgNode(node *Node) *tailcfg.Node {
	online := node.streams > 0
	n := &tailcfg.Node{
		ID:                node.ID,
		StableID:          tailcfg.StableNodeID(fmt.Sprintf("lab%d", node.ID)),
		Name:              fmt.Sprintf("%s.%s.", node.Name, c.domain),
		User:              userProfile(node.Identity).ID,
		Key:               node.Key,
		KeyExpiry:         node.Expiry,
		Machine:           node.Machine,
		DiscoKey:          node.Disco,
		Addresses:         node.Addresses(),
		AllowedIPs:        node.Addresses(),
		Endpoints:         node.Endpoints,
		HomeDERP:          node.HomeDERP,
		Created:           node.Created,
		Cap:               node.Version,
		Tags:              node.Tags,
		Online:            &online,
		MachineAuthorized: true,
	}
	if node.Hostinfo != nil {
		n.Hostinfo = node.Hostinfo.View()
	}
	if !online {
		n.LastSeen = &node.LastSeen
	}
	return n
}

// userProfile is the account a node is shown under: all tagged nodes share one, as at Tailscale.
func userProfile(who Identity) tailcfg.UserProfile {
	if len(who.Tags) > 0 {
		return tailcfg.UserProfile{ID: 1, LoginName: "tagged-devices", DisplayName: "Tagged Devices"}
	}
	hash := fnv.New32a()
	hash.Write([]byte(who.User))
	name, _, _ := strings.Cut(who.User, "@")
	return tailcfg.UserProfile{ID: tailcfg.UserID(hash.Sum32()) + 2, LoginName: who.User, DisplayName: name}
}

// writeMap frames one message of a map stream: length, then JSON.
func writeMap(w http.ResponseWriter, compress bool, response *tailcfg.MapResponse) error {
	body, err := json.Marshal(response)
	if err != nil {
		return err
	}
	if compress {
		body = zstdframe.AppendEncode(nil, body, zstdframe.FastestCompression)
	}
	frame := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Printf("answer: %v", err)
	}
}
