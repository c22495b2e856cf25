package main

import (
	"fmt"
	"net/http"
	"time"
)

// nodeInfo is a node as the debug endpoint shows it.
type nodeInfo struct {
	Name      string     `json:"name"`
	Addresses []string   `json:"addresses"`
	Online    bool       `json:"online"`
	Tags      []string   `json:"tags"`
	User      string     `json:"user,omitempty"`
	Expiry    *time.Time `json:"expiry"` // of the node key; null for never
	Expired   bool       `json:"expired"`
	LastSeen  time.Time  `json:"last_seen"`
}

// DebugHandler is for tests and `bin/lab status`; it listens apart from what the hosts can reach.
func (c *Control) DebugHandler(watcher *PolicyWatcher) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]any{"policy": watcher.Status(), "nodes": c.nodeInfos()})
	})
	mux.HandleFunc("POST /nodes/{name}/expire", c.nodeAction(func(node *Node) { node.Expiry = time.Now().UTC() }))
	mux.HandleFunc("DELETE /nodes/{name}", c.nodeAction(c.tailnet.remove))
	return mux
}

func (c *Control) nodeAction(action func(*Node)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := c.tailnet.Update(func() error {
			node := c.tailnet.byName(r.PathValue("name"))
			if node == nil {
				return fmt.Errorf("no node is named %q", r.PathValue("name"))
			}
			action(node)
			return nil
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (c *Control) nodeInfos() []nodeInfo {
	c.tailnet.mu.Lock()
	defer c.tailnet.mu.Unlock()
	infos := []nodeInfo{}
	for _, node := range c.tailnet.Nodes {
		info := nodeInfo{
			Name: node.Name, Addresses: addressStrings(node), Online: node.streams > 0, Tags: node.Tags, User: node.User,
			Expired: node.expired(time.Now()), LastSeen: node.LastSeen,
		}
		if !node.Expiry.IsZero() {
			info.Expiry = &node.Expiry
		}
		infos = append(infos, info)
	}
	return infos
}
