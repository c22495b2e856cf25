package main

import (
	"bytes"
	"context"
	"log"
	"os"
	"sync"
	"time"
)

// PolicyWatcher re-reads the policy file and hands over each version that passes its own tests.
type PolicyWatcher struct {
	path  string
	apply func(*Policy) error

	mu       sync.Mutex
	text     []byte
	loaded   time.Time
	rejected string
}

// policyStatus says which policy is in force.
type policyStatus struct {
	File     string    `json:"file"`
	Loaded   time.Time `json:"loaded"`
	Rejected string    `json:"rejected,omitempty"` // why the file as it is now is not the policy in force
}

// Status tells when the policy in force was read, and what is wrong with a newer file.
func (p *PolicyWatcher) Status() policyStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return policyStatus{File: p.path, Loaded: p.loaded, Rejected: p.rejected}
}

// Load reads the file when its content is new. A policy that is refused leaves the old one in force.
func (p *PolicyWatcher) Load() error {
	text, err := os.ReadFile(p.path)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		if bytes.Equal(text, p.text) {
			return nil
		}
		var policy *Policy
		if policy, err = ParsePolicy(text); err == nil {
			err = p.apply(policy)
		}
	}
	p.text = text
	if err != nil {
		p.rejected = err.Error()
		return err
	}
	p.loaded, p.rejected = time.Now().UTC(), ""
	return nil
}

// Run looks at the file every interval until the context ends.
func (p *PolicyWatcher) Run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := p.Load(); err != nil && err.Error() != last {
			log.Printf("policy refused, the old one stays in force: %v", err)
			last = err.Error()
		}
	}
}
