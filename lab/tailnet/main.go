// Command tailnet is the lab's stand-in for the Tailscale service: a control server for real Tailscale clients, with
// its own DERP relay and STUN server, that enforces the tailnet policy file of this repository.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

type options struct {
	check, policy, keys, state, cert, certKey string
	url, listen, stun, debug, domain          string
}

func main() {
	log.SetFlags(log.LstdFlags | log.LUTC)
	var o options
	flag.StringVar(&o.check, "check", "", "only validate this policy file and run its tests")
	flag.StringVar(&o.policy, "policy", "", "tailnet policy file (HuJSON); re-read when it changes")
	flag.StringVar(&o.keys, "auth-keys", "",
		`JSON file of auth keys: {"KEY": {"tags": ["tag:x"]}} or {"KEY": {"user": "a@b", "admin": true}}`)
	flag.StringVar(&o.state, "state", "", "file that keeps nodes and keys over a restart")
	flag.StringVar(&o.cert, "cert", "", "TLS certificate chain (PEM)")
	flag.StringVar(&o.certKey, "key", "", "TLS key (PEM)")
	flag.StringVar(&o.url, "url", "", "the login server as clients name it, for example https://control.tail.test")
	flag.StringVar(&o.listen, "listen", ":443", "address for control and DERP (TLS)")
	flag.StringVar(&o.stun, "stun", ":3478", "address for STUN (UDP)")
	flag.StringVar(&o.debug, "debug", "127.0.0.1:8091", "address for the debug endpoint (plain http)")
	flag.StringVar(&o.domain, "domain", "tail.test", "MagicDNS domain")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "tailnet: %v\n", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.check != "" {
		text, err := os.ReadFile(o.check)
		if err != nil {
			return err
		}
		policy, err := ParsePolicy(text)
		if err != nil {
			return fmt.Errorf("%s:\n%w", o.check, err)
		}
		fmt.Printf("%s: %d rules, %d tests pass\n", o.check, len(policy.rules), len(policy.tests))
		return nil
	}
	for name, value := range map[string]string{
		"policy": o.policy, "auth-keys": o.keys, "state": o.state, "cert": o.cert, "key": o.certKey, "url": o.url,
	} {
		if value == "" {
			return fmt.Errorf("-%s is missing (see -help)", name)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	control := &Control{url: o.url, domain: o.domain, keysFile: o.keys}
	watcher := &PolicyWatcher{path: o.policy}
	watcher.apply = func(policy *Policy) error {
		return control.tailnet.Update(func() error { control.tailnet.policy = policy; return nil })
	}
	_, err := readKeys(o.keys)
	if err != nil {
		return err
	}
	if control.tailnet, err = OpenTailnet(o.state, &Policy{}); err != nil {
		return err
	}
	if err := watcher.Load(); err != nil {
		return fmt.Errorf("%s:\n%w", o.policy, err)
	}
	go watcher.Run(ctx, 300*time.Millisecond)

	if control.derpMap, err = derpMap(o.url, o.stun); err != nil {
		return err
	}
	stun := stunserver.New(ctx)
	if err := stun.Listen(o.stun); err != nil {
		return err
	}
	go stun.Serve()

	derp := derpserver.New(key.NewNode(), log.Printf)
	defer derp.Close()
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.Handler(derp))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)
	mux.Handle("/", control.Handler())

	// Clients upgrade an HTTP/1.1 connection, so HTTP/2 is not offered.
	http1 := map[string]func(*http.Server, *tls.Conn, http.Handler){}
	public := &http.Server{Addr: o.listen, Handler: mux, TLSNextProto: http1}
	private := &http.Server{Addr: o.debug, Handler: control.DebugHandler(watcher)}
	failed := make(chan error, 2)
	go func() { failed <- public.ListenAndServeTLS(o.cert, o.certKey) }()
	go func() { failed <- private.ListenAndServe() }()
	log.Printf("the lab's tailnet %s at %s (a stand-in for the Tailscale service)", o.domain, o.url)
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// derpMap describes the one relay: this program, under the name and port of the login server.
func derpMap(rawURL, stun string) (*tailcfg.DERPMap, error) {
	login, err := url.Parse(rawURL)
	if err != nil || login.Scheme != "https" || login.Hostname() == "" {
		return nil, fmt.Errorf("-url %q is not an https URL", rawURL)
	}
	port := 443
	if login.Port() != "" {
		if port, err = strconv.Atoi(login.Port()); err != nil {
			return nil, err
		}
	}
	_, stunPort, err := net.SplitHostPort(stun)
	if err != nil {
		return nil, fmt.Errorf("-stun: %w", err)
	}
	stunNumber, err := strconv.Atoi(stunPort)
	if err != nil {
		return nil, fmt.Errorf("-stun: %w", err)
	}
	return &tailcfg.DERPMap{OmitDefaultRegions: true, Regions: map[int]*tailcfg.DERPRegion{1: {
		RegionID: 1, RegionCode: "lab", RegionName: "The lab",
		Nodes: []*tailcfg.DERPNode{{
			Name: "1", RegionID: 1, HostName: login.Hostname(), IPv6: "none", DERPPort: port, STUNPort: stunNumber,
		}},
	}}}, nil
}
