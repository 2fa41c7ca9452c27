"""The keywords of OpenSSH's client configuration, by what they mean here; ssh_config(5)."""

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FLAGS: Final = _words(
    "batchmode canonicalizefallbacklocal challengeresponseauthentication checkhostip clearallforwardings compression "
    "dsaauthentication enablesshkeysign exitonforwardfailure forwardx11 forwardx11trusted gatewayports "
    "gssapiauthentication gssapidelegatecredentials gssapikeyexchange gssapirenewalforcesrekey gssapitrustdns "
    "hashknownhosts hostbasedauthentication identitiesonly kbdinteractiveauthentication keepalive "
    "nohostauthenticationforlocalhost passwordauthentication permitlocalcommand proxyusefdpass "
    "skeyauthentication stdinnull forkafterauthentication streamlocalbindunlink tcpkeepalive tisauthentication "
    "visualhostkey enableescapecommandline"
)
"""Keywords whose value is yes or no."""
CHOICES: Final = {
    **dict.fromkeys(FLAGS, ("yes", "no", "true", "false")),
    "stricthostkeychecking": ("yes", "no", "true", "false", "ask", "off", "accept-new"),
    "addressfamily": ("inet", "inet6", "any"),
    "pubkeyauthentication": ("yes", "no", "true", "false", "unbound", "host-bound"),
    "canonicalizehostname": ("yes", "no", "true", "false", "always"),
}
COMMANDS: Final = frozenset({"proxycommand", "proxyjump", "localcommand", "remotecommand", "knownhostscommand"})
"""Keywords whose value is the rest of the line, whatever it holds."""
KEYWORDS: Final = FLAGS | _words(
    "addkeystoagent addressfamily afstokenpassing bindaddress bindinterface canonicaldomains canonicalizehostname "
    "canonicalizemaxdots canonicalizepermittedcnames casignaturealgorithms certificatefile channeltimeout cipher "
    "ciphers compressionlevel connectionattempts connecttimeout controlmaster controlpath controlpersist "
    "dynamicforward escapechar fallbacktorsh fingerprinthash forwardagent forwardx11timeout globalknownhostsfile "
    "globalknownhostsfile2 gssapiclientidentity gssapikexalgorithms gssapiserveridentity host "
    "hostbasedacceptedalgorithms hostbasedkeytypes hostkeyalgorithms hostkeyalias hostname identityagent identityfile "
    "identityfile2 ignoreunknown include ipqos kbdinteractivedevices kerberosauthentication kerberostgtpassing "
    "kexalgorithms knownhostscommand localcommand localforward loglevel logverbose macs match "
    "numberofpasswordprompts obscurekeystroketiming permitremoteopen pkcs11provider port preferredauthentications "
    "protocol protocolkeepalives proxycommand proxyjump pubkeyacceptedalgorithms pubkeyacceptedkeytypes "
    "pubkeyauthentication refuseconnection rekeylimit remotecommand remoteforward requesttty requiredrsasize "
    "revokedhostkeys rhostsauthentication rhostsrsaauthentication rsaauthentication securitykeyprovider sendenv "
    "serveralivecountmax serveraliveinterval sessiontype setenv setuptimeout smartcarddevice streamlocalbindmask "
    "stricthostkeychecking syslogfacility tag tunnel tunneldevice updatehostkeys useblacklistedkeys useprivilegedport "
    "user userknownhostsfile userknownhostsfile2 useroaming usersh verifyhostkeydns versionaddendum warnweakcrypto "
    "xauthlocation"
)
ONE_WORD: Final = frozenset(CHOICES) | _words(
    "hostname port user hostkeyalias identityagent identityfile certificatefile revokedhostkeys bindaddress "
    "connecttimeout ciphers macs kexalgorithms hostkeyalgorithms preferredauthentications forwardagent"
)

ADDING_UP: Final = frozenset({"identityfile", "certificatefile", "sendenv"})
"""Keywords of which every line counts; of the others the first one does."""
EVALUATED: Final = frozenset({"hashknownhosts", "compression", "connecttimeout", "forwardagent", "sendenv", "setenv"})
"""Keywords that are used here, and mean the same whatever else is set."""
HARMLESS: Final = EVALUATED | _words(
    "addkeystoagent channeltimeout checkhostip clearallforwardings compressionlevel connectionattempts controlmaster "
    "controlpath controlpersist dynamicforward enableescapecommandline escapechar exitonforwardfailure "
    "fingerprinthash forkafterauthentication forwardx11 forwardx11timeout forwardx11trusted gatewayports "
    "gssapiauthentication gssapiclientidentity gssapidelegatecredentials gssapikexalgorithms gssapikeyexchange "
    "gssapirenewalforcesrekey gssapiserveridentity gssapitrustdns ignoreunknown ipqos keepalive localcommand "
    "localforward loglevel logverbose numberofpasswordprompts obscurekeystroketiming permitlocalcommand "
    "permitremoteopen protocol protocolkeepalives rekeylimit remotecommand remoteforward requesttty sendenv "
    "serveralivecountmax serveraliveinterval sessiontype setenv setuptimeout stdinnull streamlocalbindmask "
    "streamlocalbindunlink syslogfacility tcpkeepalive tunnel tunneldevice updatehostkeys useroaming usersh "
    "versionaddendum visualhostkey warnweakcrypto xauthlocation"
)
"""Keywords that change no address, port, user, key, proxy or host key: a host that only these concern is not asked for.

In one of `Match exec` ssh would decide, and here nothing depends on it.
"""
ALIASES: Final = {
    "identityfile2": "identityfile",
    "dsaauthentication": "pubkeyauthentication",
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "tisauthentication": "kbdinteractiveauthentication",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
}

USED: Final = _words(
    "hostname port user hostkeyalias userknownhostsfile globalknownhostsfile revokedhostkeys stricthostkeychecking "
    "hashknownhosts identityfile certificatefile identitiesonly identityagent proxycommand proxyjump proxyusefdpass "
    "addressfamily bindaddress connecttimeout ciphers macs kexalgorithms hostkeyalgorithms preferredauthentications "
    "pubkeyauthentication passwordauthentication kbdinteractiveauthentication compression forwardagent sendenv "
    "setenv controlpersist"
)
"""What is kept of about eighty lines."""
OF_MASTERS: Final = _words("controlmaster controlpath controlpersist loglevel forkafterauthentication")
"""Keywords that change neither whom a connection leads to nor how, only for how long and with which words."""
