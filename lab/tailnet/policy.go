package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
	"tailscale.com/tailcfg"
)

// Policy is a tailnet policy file: the part of Tailscale's format that this project keeps to. Whatever it does not know
// is an error, so that no rule is ever silently without effect in the lab.
type Policy struct {
	groups    map[string][]string // group name -> logins
	tagOwners map[string][]string // tag -> selectors of those who may assign it
	rules     []rule
	attrs     []nodeAttr
	tests     []policyTest
}

// rule is one permission: an acl or grant with a single destination and protocol.
type rule struct {
	src   []string // selectors
	dst   string   // selector
	proto string   // "tcp", "udp", "icmp", or "" for all three
	ports []tailcfg.PortRange
}

// Identity is what a policy knows about the owner of an address: either tags, or the user who signed the device in.
type Identity struct {
	User  string   `json:"user,omitempty"`
	Admin bool     `json:"admin,omitempty"`
	Tags  []string `json:"tags,omitempty"`
}

// nodeAttr gives node attributes, which clients read from their own node, to all nodes that a target means.
type nodeAttr struct {
	Target []string `json:"target"`
	Attr   []string `json:"attr"`
}

type policyTest struct {
	Src    string   `json:"src"`
	Proto  string   `json:"proto"`
	Accept []string `json:"accept"`
	Deny   []string `json:"deny"`
}

// policyFile is the file as written.
type policyFile struct {
	Groups    map[string][]string `json:"groups"`
	TagOwners map[string][]string `json:"tagOwners"`
	ACLs      []struct {
		Action string   `json:"action"`
		Proto  string   `json:"proto"`
		Src    []string `json:"src"`
		Dst    []string `json:"dst"`
	} `json:"acls"`
	Grants []struct {
		Src []string `json:"src"`
		Dst []string `json:"dst"`
		IP  []string `json:"ip"`
	} `json:"grants"`
	NodeAttrs []nodeAttr   `json:"nodeAttrs"`
	Tests     []policyTest `json:"tests"`
}

// ianaProtocols maps a rule's protocol to what clients match packets against; nil means their default set.
var ianaProtocols = map[string][]int{"": nil, "tcp": {6}, "udp": {17}, "icmp": {1, 58}}

// ParsePolicy reads a policy, checks every name in it and runs its own tests. The error lists all that is wrong.
func ParsePolicy(text []byte) (*Policy, error) {
	plain, err := hujson.Standardize(slices.Clone(text)) // it works in place
	if err != nil {
		return nil, err
	}
	var file policyFile
	decoder := json.NewDecoder(bytes.NewReader(plain))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		return nil, fmt.Errorf("not a policy this server understands: %w", err)
	}
	policy := &Policy{groups: file.Groups, tagOwners: file.TagOwners, attrs: file.NodeAttrs, tests: file.Tests}
	var errs []error
	fail := func(where string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		}
	}
	for _, tag := range slices.Sorted(maps.Keys(file.TagOwners)) {
		where := fmt.Sprintf("tagOwners[%q]", tag)
		fail(where, policy.checkSelectors(append(slices.Clone(file.TagOwners[tag]), tag)))
	}
	for group, members := range file.Groups {
		if !strings.HasPrefix(group, "group:") {
			fail("groups", fmt.Errorf("%q does not begin with group:", group))
		}
		for _, member := range members {
			if !strings.Contains(member, "@") {
				fail("groups", fmt.Errorf("%s: %q is not a login name", group, member))
			}
		}
	}
	for i, acl := range file.ACLs {
		where := fmt.Sprintf("acls[%d]", i)
		if acl.Action != "accept" {
			fail(where, fmt.Errorf("action is %q: a policy can only accept", acl.Action))
		}
		for _, dst := range acl.Dst {
			selector, ports, err := splitDestination(dst)
			fail(where, err)
			if err == nil {
				fail(where, policy.addRule(rule{acl.Src, selector, acl.Proto, ports}))
			}
		}
	}
	for i, grant := range file.Grants {
		where := fmt.Sprintf("grants[%d]", i)
		for _, dst := range grant.Dst {
			for _, ip := range grant.IP {
				proto, ports, err := splitCapability(ip)
				fail(where, err)
				if err == nil {
					fail(where, policy.addRule(rule{grant.Src, dst, proto, ports}))
				}
			}
		}
	}
	for i, attr := range file.NodeAttrs {
		fail(fmt.Sprintf("nodeAttrs[%d]", i), policy.checkSelectors(attr.Target))
	}
	if len(errs) == 0 { // a test of a rule that was not read would only confuse
		for i, test := range file.Tests {
			for _, err := range policy.runTest(test) {
				fail(fmt.Sprintf("tests[%d]", i), err)
			}
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return policy, nil
}

func (p *Policy) addRule(r rule) error {
	if len(r.src) == 0 {
		return errors.New("src is empty")
	}
	if _, ok := ianaProtocols[r.proto]; !ok {
		return fmt.Errorf("protocol %q is not one of tcp, udp, icmp", r.proto)
	}
	p.rules = append(p.rules, r)
	return p.checkSelectors(append(slices.Clone(r.src), r.dst))
}

// checkSelectors refuses names that nothing defines: Tailscale does so too, and a typing error would open nothing.
func (p *Policy) checkSelectors(selectors []string) error {
	for _, selector := range selectors {
		kind, _, _ := strings.Cut(selector, ":")
		var known bool
		switch kind {
		case "tag":
			_, known = p.tagOwners[selector]
		case "group":
			_, known = p.groups[selector]
		case "autogroup":
			known = slices.Contains([]string{"autogroup:admin", "autogroup:member", "autogroup:tagged"}, selector)
		default:
			known = selector == "*" || strings.Contains(selector, "@")
		}
		if !known {
			return fmt.Errorf("%q is not defined in this policy", selector)
		}
	}
	return nil
}

// matches tells whether a selector means this identity. A tagged device is nobody's: it lost its user's rights.
func (p *Policy) matches(selector string, who Identity) bool {
	tagged := len(who.Tags) > 0
	switch kind, _, _ := strings.Cut(selector, ":"); {
	case selector == "*":
		return true
	case kind == "tag":
		return slices.Contains(who.Tags, selector)
	case selector == "autogroup:tagged":
		return tagged
	case tagged:
		return false
	case selector == "autogroup:member":
		return true
	case selector == "autogroup:admin":
		return who.Admin
	case kind == "group":
		return slices.Contains(p.groups[selector], who.User)
	default:
		return selector == who.User
	}
}

func (p *Policy) matchesAny(selectors []string, who Identity) bool {
	return slices.ContainsFunc(selectors, func(selector string) bool { return p.matches(selector, who) })
}

// Connected tells whether any rule joins the two, in either direction. Nodes without one never hear of each other.
func (p *Policy) Connected(a, b Identity) bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool {
		return p.matchesAny(r.src, a) && p.matches(r.dst, b) || p.matchesAny(r.src, b) && p.matches(r.dst, a)
	})
}

// Filter compiles the rules whose destination is self into what a client enforces on packets from its peers.
func (p *Policy) Filter(self *Node, peers []*Node) []tailcfg.FilterRule {
	filter := []tailcfg.FilterRule{} // never nil: an empty filter denies, a missing one keeps the last
	for _, r := range p.rules {
		if !p.matches(r.dst, self.Identity) {
			continue
		}
		var sources []string
		for _, peer := range peers {
			if p.matchesAny(r.src, peer.Identity) {
				sources = append(sources, addressStrings(peer)...)
			}
		}
		if len(sources) == 0 {
			continue
		}
		compiled := tailcfg.FilterRule{SrcIPs: sources, IPProto: ianaProtocols[r.proto]}
		for _, address := range addressStrings(self) {
			for _, ports := range r.ports {
				compiled.DstPorts = append(compiled.DstPorts, tailcfg.NetPortRange{IP: address, Ports: ports})
			}
		}
		filter = append(filter, compiled)
	}
	return filter
}

// Attributes lists the node attributes that the policy gives to a node.
func (p *Policy) Attributes(who Identity) (attributes []tailcfg.NodeCapability) {
	for _, attr := range p.attrs {
		if p.matchesAny(attr.Target, who) {
			for _, name := range attr.Attr {
				attributes = append(attributes, tailcfg.NodeCapability(name))
			}
		}
	}
	return attributes
}

// MayRetag tells whether a node with the current tags may take the wanted ones without signing in again.
func (p *Policy) MayRetag(current, wanted []string) bool {
	for _, tag := range wanted {
		owners := p.tagOwners[tag]
		if !slices.ContainsFunc(current, func(owner string) bool { return slices.Contains(owners, owner) }) {
			return false
		}
	}
	return len(wanted) > 0
}

// runTest checks what one entry of "tests" expects.
func (p *Policy) runTest(test policyTest) (errs []error) {
	if err := p.checkSelectors([]string{test.Src}); err != nil {
		return []error{err}
	}
	sources, err := p.exemplars(test.Src)
	if err != nil {
		return []error{err}
	}
	if _, ok := ianaProtocols[test.Proto]; !ok {
		return []error{fmt.Errorf("protocol %q is not one of tcp, udp, icmp", test.Proto)}
	}
	if len(test.Accept)+len(test.Deny) == 0 {
		return []error{errors.New("expects nothing: neither accept nor deny")}
	}
	expect := func(destinations []string, want bool) {
		for _, destination := range destinations {
			got, err := p.allows(sources, test.Proto, destination)
			switch {
			case err != nil:
				errs = append(errs, err)
			case got && !want:
				errs = append(errs, fmt.Errorf("%s -> %s is allowed, the test expects it denied", test.Src, destination))
			case !got && want:
				errs = append(errs, fmt.Errorf("%s -> %s is denied, the test expects it allowed", test.Src, destination))
			}
		}
	}
	expect(test.Accept, true)
	expect(test.Deny, false)
	return errs
}

// exemplars gives identities that stand for a selector: a group's members each, since a test means all of them.
func (p *Policy) exemplars(selector string) ([]Identity, error) {
	switch kind, _, _ := strings.Cut(selector, ":"); {
	case kind == "tag":
		return []Identity{{Tags: []string{selector}}}, nil
	case kind == "group":
		var members []Identity
		for _, user := range p.groups[selector] {
			members = append(members, Identity{User: user})
		}
		return members, nil
	case strings.Contains(selector, "@"):
		return []Identity{{User: selector}}, nil
	}
	return nil, fmt.Errorf("%q cannot stand in a test: use a tag, a group or a login name", selector)
}

// allows tells whether the rules let every source reach "selector:port".
func (p *Policy) allows(sources []Identity, proto, destination string) (bool, error) {
	selector, ports, err := splitDestination(destination)
	if err != nil {
		return false, err
	}
	if len(ports) != 1 || ports[0].First != ports[0].Last {
		return false, fmt.Errorf("%q: a test names one port", destination)
	}
	if err := p.checkSelectors([]string{selector}); err != nil {
		return false, err
	}
	targets, err := p.exemplars(selector)
	if err != nil {
		return false, err
	}
	for _, source := range sources {
		for _, target := range targets {
			if !slices.ContainsFunc(p.rules, func(r rule) bool {
				return p.matchesAny(r.src, source) && p.matches(r.dst, target) && covers(r, proto, ports[0].First)
			}) {
				return false, nil
			}
		}
	}
	return true, nil
}

// covers tells whether a rule opens a port; a test without a protocol asks for TCP or UDP.
func covers(r rule, proto string, port uint16) bool {
	protoFits := r.proto == "" || r.proto == proto || proto == "" && r.proto != "icmp"
	return protoFits && slices.ContainsFunc(r.ports, func(ports tailcfg.PortRange) bool { return ports.Contains(port) })
}

// splitDestination parses "tag:x:22,8000-8010" into selector and ports.
func splitDestination(text string) (string, []tailcfg.PortRange, error) {
	colon := strings.LastIndex(text, ":")
	if colon < 0 {
		return "", nil, fmt.Errorf("%q has no port", text)
	}
	ports, err := parsePorts(text[colon+1:])
	return text[:colon], ports, err
}

// splitCapability parses a grant's "tcp:22", "22-25", "icmp:*" or "*" into protocol and ports.
func splitCapability(text string) (string, []tailcfg.PortRange, error) {
	proto, list, found := strings.Cut(text, ":")
	if !found {
		proto, list = "", text
	}
	ports, err := parsePorts(list)
	return proto, ports, err
}

func parsePorts(list string) (ranges []tailcfg.PortRange, err error) {
	if list == "*" {
		return []tailcfg.PortRange{tailcfg.PortRangeAny}, nil
	}
	for _, item := range strings.Split(list, ",") {
		from, to, found := strings.Cut(item, "-")
		if !found {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || first > last {
			return nil, fmt.Errorf("%q is not a port, a range or *", item)
		}
		ranges = append(ranges, tailcfg.PortRange{First: uint16(first), Last: uint16(last)})
	}
	return ranges, nil
}

func addressStrings(node *Node) (addresses []string) {
	for _, prefix := range node.Addresses() {
		addresses = append(addresses, netip.Prefix(prefix).Addr().String())
	}
	return addresses
}
