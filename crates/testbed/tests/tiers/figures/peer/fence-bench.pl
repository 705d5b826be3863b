#!/usr/bin/perl
# A fence agent that loses no time: it presses a node's power switch, and has done so when nothing of the node is left.
use strict;
use warnings;
use Socket;

my %given = map { /^\s*(\w+)=(.*?)\s*$/ ? ( $1 => $2 ) : () } <STDIN>;
my ( $action, $switch ) = ( $given{action} // 'reboot', $given{switch} // '' );
if ( $action =~ /^meta-?data$/ ) {
    print <<'END';
<?xml version="1.0"?>
<resource-agent name="fence_bench" shortdesc="A testbed's power switch">
  <longdesc>A testbed's power switch.</longdesc>
  <parameters>
    <parameter name="action" required="1"><content type="string" default="reboot"/><shortdesc lang="en">What is done</shortdesc></parameter>
    <parameter name="switch" required="1"><content type="string"/><shortdesc lang="en">The switch's socket</shortdesc></parameter>
  </parameters>
  <actions>
    <action name="on"/><action name="off"/><action name="reboot"/><action name="status"/><action name="monitor"/><action name="metadata"/>
  </actions>
</resource-agent>
END
    exit 0;
}

# Who is to turn a node on again is not the switch.
exit 0 if $action eq 'on';
exit( -S $switch ? 0 : 1 ) if $action eq 'monitor' || $action eq 'status';
exit 1 unless $action eq 'off' || $action eq 'reboot';

socket( my $line, PF_UNIX, SOCK_STREAM, 0 ) or die "can't make a socket: $!";
connect( $line, pack_sockaddr_un($switch) ) or die "can't reach the switch $switch: $!";
defined syswrite( $line, "off\n" ) or die "can't press the switch $switch: $!";
# It hangs up when it is done.
my $end = sysread( $line, my $rest, 16 );
defined $end && $end == 0 or die "the switch $switch has not done it";
exit 0;
